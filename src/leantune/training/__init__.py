"""A stack of methods at work: the training loop, evaluation, resuming, and `leantune.apply`."""
