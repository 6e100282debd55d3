"""LeanTune: what memory-efficient fine-tuning really saves, and what it costs."""

__version__ = "0.1.0"

# Raised whenever a number that a record holds would change; part of every comparability key.
MEASUREMENT_VERSION = 1
