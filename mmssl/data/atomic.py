"""Folders that are written whole or not at all, and once, however many runs need them at the same time."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from mmssl.errors import BadInput, first_line, not_written

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)
OURS = ".mmssl"  # lies in a folder that is being written, and says that it is ours to remove


@contextmanager
def whole(directory: Path) -> Iterator[Path]:
    """A folder with nothing to be seen in it, which becomes `directory` where the block ends without an error, and else
    is removed.

    Raises BadInput where `directory` holds something, and where the disk is full.
    """
    directory = directory.expanduser()
    if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory} holds something already: remove it, or choose another folder")
    partial = Path(f"{directory.absolute()}.mmssl-partial")
    try:
        _clear(partial)  # of a run that was killed
        partial.mkdir(parents=True)
        (partial / OURS).touch()
        yield partial
        (partial / OURS).unlink()
        partial.rename(directory)
    except OSError as error:
        if error.errno not in OF_THE_DISK:  # a source that cannot be read, or a network
            raise
        written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        raise not_written(directory, error, written) from error
    finally:
        if (partial / OURS).exists():
            shutil.rmtree(partial, ignore_errors=True)


def once(directory: Path, make: Callable[[Path], object]) -> Path:
    """`directory`, made if it is not there yet. make: writes it whole. Raises BadInput where it cannot lie there."""
    lock = FileLock(f"{directory}.lock")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # whoever comes second waits, and finds it done
    except OSError as error:
        raise BadInput(f"{error.filename or directory} is in the way ({first_line(error)}): remove it") from error
    try:
        if not directory.exists():
            make(directory)
    finally:
        lock.release()
    if not directory.is_dir():
        raise BadInput(f"{directory} is no folder: remove it, and it is made again")
    return directory


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """For a folder of ours that a block reads: raises BadInput where a file is gone, cut short or of another form."""
    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BadInput(
            f"{directory} is damaged ({first_line(error)}): remove that folder, and it is made again"
        ) from error


def _clear(partial: Path) -> None:
    with suppress(OSError):
        partial.rmdir()  # empty: killed before its mark was there
    if (partial / OURS).is_file():
        shutil.rmtree(partial)
    if os.path.lexists(partial):
        raise BadInput(f"{partial} is in the way, and no run of mmssl wrote it: move it away")
