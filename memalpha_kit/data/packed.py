"""Raw files on disk, plain or packed (gzip, zip, 7z): opened, with errors that name the file."""

from __future__ import annotations

import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from memalpha_kit.errors import InputError
from memalpha_kit.files import refuse_pipe

_BROKEN = (
    *(OSError, EOFError, NotImplementedError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)
_LFS_POINTER = b"version https://git-lfs"


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The open raw file, unpacked while it is read.

    Raises InputError, naming the file, if it cannot be read, is cut off or damaged, is a Git-LFS
    pointer, a pipe, or an archive of several files or with a password.
    """
    refuse_pipe(path)
    file: Any  # a reader that can look ahead
    try:
        with ExitStack() as stack:
            if path.suffix == ".gz":
                file = io.BufferedReader(stack.enter_context(gzip.open(path)))
            elif path.suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                file = stack.enter_context(_member(archive, path))
            elif path.suffix == ".7z":
                file = stack.enter_context(open(_unpacked(path, stack), "rb"))
            else:
                file = stack.enter_context(open(path, "rb"))
            if file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
                raise InputError(
                    f"{path}: expected data, found a Git-LFS pointer (run git lfs pull)"
                )
            yield file
    except _BROKEN as error:
        found = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: expected a readable file, found: {found}") from error


def _unpacked(path: Path, stack: ExitStack) -> Path:
    """The one file of a 7z archive, unpacked into a folder that the stack removes."""
    try:
        import py7zr
        from py7zr import exceptions as kinds
    except ImportError:
        how = f"pip install py7zr, or run 7z x {path.name}"
        raise InputError(f"{path}: expected a library that unpacks it: {how}") from None
    broken = (kinds.ArchiveError, kinds.AbsolutePathError, kinds.PasswordRequired, ValueError)
    folder = Path(stack.enter_context(TemporaryDirectory()))
    try:
        with py7zr.SevenZipFile(path) as archive:
            _only([info.filename for info in archive.list() if not info.is_directory], path)
            archive.extractall(folder)
    except broken as error:
        found = str(error.args[-1] if error.args else type(error).__name__)
        raise InputError(f"{path}: expected a 7z archive without a password: {found}") from error
    return next(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _only(names: Sequence[str], path: Path) -> str:
    if len(names) != 1:
        found = ", ".join(names[:3]) or "none"
        raise InputError(f"{path}: expected an archive of one file, found {found}")
    return names[0]


def _member(archive: zipfile.ZipFile, path: Path) -> IO[bytes]:
    names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX")]
    name = _only(names, path)
    if archive.getinfo(name).flag_bits & 1:
        raise InputError(f"{path}: expected an archive without a password, found an encrypted one")
    return archive.open(name)
