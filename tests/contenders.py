"""Processes that contend for a lease, and how many hold it at once."""

import time


def stay(running, most, seconds):
    """Be inside for some seconds, counted: `running` are inside now, `most` were at once."""
    with running.get_lock():
        running.value += 1
        most.value = max(most.value, running.value)
    time.sleep(seconds)
    with running.get_lock():
        running.value -= 1
