"""Unpack zip (wheel) and tar archives that nobody vouches for: nothing leaves the folder, nothing
explodes."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from leantune.errors import BadInput

_MOST_MEMBERS = 100_000
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(
        EOFError,
        RuntimeError,
    ),  # cut short; encrypted, or compressed in a way that zipfile does not know
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack `archive` into `folder`. Only plain files and folders are accepted, no link, no path
    outside.

    The unpacked bytes may be 16 MiB plus 100 times the archive's: text compresses 3 to 10 times, a
    bomb 1000. Raises BadInput for an archive that is broken or breaks these rules; the caller
    removes the folder then.
    """
    limit = 2**24 + 100 * archive.stat().st_size
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder, limit)
        elif tarfile.is_tarfile(archive):
            _untar(archive, folder, limit)
        else:
            raise BadInput(f"{archive.name} is not a readable zip or tar archive; fetch it again")
    except (*_BROKEN, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInput(f"archive {archive.name} is broken ({error}); fetch it again") from error


def _unzip(archive: Path, folder: Path, limit: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        _bound(archive, len(members), sum(m.file_size for m in members), limit)
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            target = _target(
                archive, folder, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR)
            )
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            # zipfile reads no more than the size that the member declares, so the bound above holds
            with opened.open(member) as data, target.open("xb") as file:
                shutil.copyfileobj(data, file, 2**20)


def _untar(archive: Path, folder: Path, limit: int) -> None:
    size = count = 0
    with tarfile.open(archive) as opened:
        for member in opened:
            size, count = size + member.size, count + 1
            _bound(archive, count, size, limit)
            _target(archive, folder, member.name, member.isreg() or member.isdir())
            opened.extract(member, folder, filter="data")


def _bound(archive: Path, members: int, size: int, limit: int) -> None:
    if members > _MOST_MEMBERS or size > limit:
        raise BadInput(
            f"archive {archive.name} unpacks to over {limit} bytes or {_MOST_MEMBERS} files; not trusted"
        )


def _target(archive: Path, folder: Path, name: str, plain: bool) -> Path:
    path = PurePosixPath(name)
    if not plain:
        raise BadInput(
            f"archive {archive.name} holds '{name}', a link or device; only plain files are unpacked"
        )
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise BadInput(
            f"archive {archive.name} holds '{name}', a path outside its folder; it is not unpacked"
        )
    return folder / path
