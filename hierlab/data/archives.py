"""Archives unpacked without leaving their folder."""

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import IO

from hierlab._io import atomic

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, bytes, how to read it


def is_archive(path: str | os.PathLike) -> bool:
    """Whether :func:`unpack` reads a file of this name."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def unpack(archive: str | os.PathLike, folder: str | os.PathLike) -> list[Path]:
    """Unpack a ZIP or tar archive below ``folder`` and return its files, in the archive's order.

    All names are looked at before anything is written. Files are written whole under a temporary name first; one that
    is there with its full size is kept, so that an interrupted unpacking goes on.

    ValueError for another kind of file, for a member that is a link, a device or encrypted, whose name is absolute or
    leads out of ``folder``, and for a damaged archive. OSError where the disk has no room for it.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such file")
    if not is_archive(archive):
        raise ValueError(
            f"{archive} is not unpacked here ({', '.join(SUFFIXES)} are): unpack it with a tool of its own"
        )
    try:
        with _members(archive) as members:
            places = [(_place(archive, folder, name), size, read) for name, size, read in members]
            todo = [item for item in places if not (item[0].is_file() and item[0].stat().st_size == item[1])]
            _need(archive, folder, sum(size for _, size, _ in todo))
            for path, size, read in todo:
                with atomic(path) as temporary, read() as source, open(temporary, "wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
                    if target.tell() != size:
                        raise ValueError(f"{archive}: {path.name} has {target.tell()} of {size} bytes. Fetch it again")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged or a part of the archive ({error}): fetch it again") from error
    return [path for path, _, _ in places]


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """The files of an archive."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            yield [_zipped(archive, opened, info) for info in opened.infolist() if not info.is_dir()]
    else:
        with tarfile.open(archive) as opened:
            yield [_tarred(archive, opened, info) for info in opened.getmembers() if not info.isdir()]


def _zipped(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ValueError(f"{archive}: {info.filename} is a link or a device, which is not unpacked")
    if info.flag_bits & 1:
        raise ValueError(f"{archive}: {info.filename} is encrypted: unpack the archive with a tool of its own")
    return info.filename, info.file_size, lambda: opened.open(info)


def _tarred(archive: Path, opened: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    if not info.isfile():
        raise ValueError(f"{archive}: {info.name} is a link or a device, which is not unpacked")
    return info.name, info.size, lambda: opened.extractfile(info)


def _place(archive: Path, folder: Path, name: str) -> Path:
    """Where a member goes; ValueError where that is not below the folder."""
    path = (folder / name).resolve()
    foreign = PureWindowsPath(name)  # a drive or a backslash, as other systems would read them
    if foreign.drive or foreign.root or "\\" in name or ".." in foreign.parts or folder.resolve() not in path.parents:
        raise ValueError(f"{archive}: {name} would be written outside {folder}: nothing was unpacked")
    return path


def _need(archive: Path, folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f"{archive} needs {size / 1e9:.1f} GB below {folder}, where {free / 1e9:.1f} GB are free")
