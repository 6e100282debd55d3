"""The errors that people see. Each message is one sentence: what was wrong, where, and what to do."""

RETRY = 75  # EX_TEMPFAIL: run the same command again, after a stop or with more memory or time


class BadInput(Exception):
    """Something the user wrote or holds is wrong (a name, a key, a file): exit 2, nothing is
    recorded."""


class Unsupported(Exception):
    """A method cannot run on this model, task or device: a record with status `unsupported`."""


class Diverged(Exception):
    """The loss is no longer finite: a record with status `diverged`."""
