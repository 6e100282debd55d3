"""The report: one static page of what the results say, a page for each method, and figures for a
paper."""

from leantune.report.figures import write_figures
from leantune.report.site import write_report

__all__ = ["write_figures", "write_report"]
