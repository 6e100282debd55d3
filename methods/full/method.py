"""Full fine-tuning: nothing is frozen and nothing is added, so every hook is the default."""

from leantune.api import Method


class Full(Method):
    pass
