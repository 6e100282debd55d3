"""What code does to the world outside its scratch: the network that it asks for, the files that it
writes."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NETWORK = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}  # the address
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_observers: list[
    Callable[[str, tuple[Any, ...]], None]
] = []  # an audit hook stays for good; these come and go


@dataclass(frozen=True)
class Seen:
    """Addresses that were asked for, and paths that were written outside the scratch."""

    addresses: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextlib.contextmanager
def observed() -> Iterator[Seen]:
    """Watch this process through Python's audit events; a call to the network is refused with
    PermissionError.

    Meanwhile the temporary folder is a fresh one, in which writing is allowed, and the working
    folder an empty one, whose files are told at the end, also those that a library wrote past
    Python.
    """
    _install()
    seen = Seen()
    before, temporary = Path.cwd(), tempfile.tempdir

    def observe(event: str, args: tuple[Any, ...]) -> None:
        if event in _NETWORK:
            address = args[_NETWORK[event]]
            if isinstance(address, tuple) or not event.startswith(
                "socket.connect"
            ):  # text: a socket of this machine
                seen.addresses.append(str(address))
                raise PermissionError(f"the network was asked for: {address}")
        elif event in _CHANGES or (event == "open" and _writes(args)):
            path = (
                os.path.realpath(os.fsdecode(args[0]))
                if isinstance(args[0], str | bytes | os.PathLike)
                else ""
            )
            if (
                path
                and not path.startswith((scratch, "/dev/", "/proc/"))
                and "__pycache__" not in path
            ):
                seen.paths.append(path)

    with tempfile.TemporaryDirectory() as folder:
        scratch = os.path.realpath(folder) + os.sep
        working = Path(folder, "working-folder")
        working.mkdir()
        tempfile.tempdir = folder
        os.chdir(working)
        _observers.append(observe)
        try:
            yield seen
        finally:
            _observers.pop()
            os.chdir(before)
            tempfile.tempdir = temporary
        seen.paths.extend(str(path.relative_to(working)) for path in working.rglob("*"))


@functools.cache
def _install() -> None:
    sys.addaudithook(lambda event, args: _observers[-1](event, args) if _observers else None)


def _writes(args: tuple[Any, ...]) -> bool:
    """Whether the `open` event of (path, mode, flags) is for writing; os.open has no mode."""
    mode, flags = args[1], args[2]
    return bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool(flags & _WRITING)
