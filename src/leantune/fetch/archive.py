"""Unpack zip (wheel) and tar archives that nobody vouches for: nothing leaves the folder, nothing
explodes."""

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from leantune.errors import BadInput

_MOST_MEMBERS = 100_000
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    # cut short; encrypted, or compressed in a way that zipfile does not know
    *(EOFError, RuntimeError),
    # a file and a folder of one name
    *(FileExistsError, IsADirectoryError, NotADirectoryError),
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack `archive` into `folder`. Only plain files and folders are accepted, no link, no path
    outside.

    The unpacked bytes may be 16 MiB plus 100 times the archive's: text compresses 3 to 10 times, a
    bomb 1000. Raises BadInput for an archive that is broken or breaks these rules; the caller
    removes the folder then.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                # zipfile reads no more than the size that a member declares
                listed = ((m, m.filename, m.file_size, _plain(m)) for m in packed.infolist())
                packed.extractall(folder, _checked(archive, listed))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                named = ((m, m.name, m.size, m.isreg() or m.isdir()) for m in tar)
                tar.extractall(folder, _checked(archive, named), filter="data")
        else:
            raise BadInput(f"{archive.name} is not a readable zip or tar archive; fetch it again")
    except _BROKEN as error:
        raise BadInput(f"archive {archive.name} is broken ({error}); fetch it again") from error


def _plain(member: zipfile.ZipInfo) -> bool:
    """Whether it is a file or a folder; 0 is what a packer on Windows writes."""
    return stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)


def _checked(archive: Path, members: Iterable[tuple[Any, str, int, bool]]) -> Iterator[Any]:
    """The members of (member, name, size, plain), each once it has been found to be harmless."""
    limit = 2**24 + 100 * archive.stat().st_size
    total = 0
    for count, (member, name, size, plain) in enumerate(members, 1):
        total += size
        path = PurePosixPath(name)
        wrong = None
        if count > _MOST_MEMBERS or total > limit:
            wrong = f"unpacks to over {limit} bytes or {_MOST_MEMBERS} files; not trusted"
        elif not plain:
            wrong = f"holds '{name}', a link or device; only plain files are unpacked"
        elif path.is_absolute() or ".." in path.parts or "\\" in name:
            wrong = f"holds '{name}', a path outside its folder; it is not unpacked"
        if wrong:
            raise BadInput(f"archive {archive.name} {wrong}")
        yield member
