"""The report: one static page of what the results say, a page for each method, and figures for a
paper."""

from leantune.report.site import write_figures, write_report

__all__ = ["write_figures", "write_report"]
