"""What code does to the world outside its scratch: the network that it asks for, the files that it
writes. Python's audit events tell; files that a library opens past Python are not seen."""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

# event -> which of its arguments is the address
_NETWORK = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Seen(NamedTuple):
    """Addresses that were asked for, paths that were written, and the folder for which it is
    fine."""

    addresses: list[str]
    paths: list[str]
    scratch: str


_watchers: list[Seen] = []  # an audit hook stays for good; these come and go


@contextlib.contextmanager
def observed() -> Iterator[Seen]:
    """Watch this process; a call to the network is refused with PermissionError.

    Meanwhile the temporary folder is a fresh one, in which writing is allowed.
    """
    _install()
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        seen = Seen([], [], os.path.realpath(folder) + os.sep)
        _watchers.append(seen)
        tempfile.tempdir = folder
        try:
            yield seen
        finally:
            _watchers.pop()
            tempfile.tempdir = before


@functools.cache
def _install() -> None:
    sys.addaudithook(lambda event, args: _note(_watchers[-1], event, args) if _watchers else None)


def _note(seen: Seen, event: str, args: tuple[Any, ...]) -> None:
    if event in _NETWORK:
        address = args[_NETWORK[event]]
        # where a socket connects to a text, it is one of this machine
        if event != "socket.connect" or isinstance(address, tuple):
            seen.addresses.append(str(address))
            raise PermissionError(f"the network was asked for: {address}")
    elif event == "os.mkdir" or (event == "open" and args[2] & _WRITING):
        # a number is a file that is open already
        path = "" if isinstance(args[0], int) else os.path.realpath(os.fsdecode(args[0]))
        fine = (seen.scratch, "/dev/", "/proc/")
        if path and not path.startswith(fine) and "__pycache__" not in path:
            seen.paths.append(path)
