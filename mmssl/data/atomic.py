"""Folders that are written completely or not at all, and only once when several runs need one at the same time; and the
folder where all of them are, and its room."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from mmssl.arguments import check_text
from mmssl.distributed import world_size
from mmssl.errors import BadInput, first_line, not_written

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)
PARTIAL = ".mmssl-partial"  # behind the name of a folder that is being written
OURS = ".mmssl"  # marks a folder that is being written as ours, so that it may be removed


@contextmanager
def whole(directory: Path) -> Iterator[Path]:
    """An empty folder that is renamed to `directory` when the block ends without an error, and removed otherwise.

    Raises BadInput if `directory` is not empty, or if the disk is full.
    """
    directory = directory.expanduser()
    if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory} already exists and is not empty: remove it, or choose another folder")
    directory = directory.resolve()  # nothing can be renamed to a link to a folder
    partial = Path(f"{directory}{PARTIAL}")
    try:
        _clear(partial)  # left by a run that was killed
        partial.mkdir(parents=True)
        (partial / OURS).touch()
        yield partial
        partial.rename(directory)
        (directory / OURS).unlink()  # not before: if the rename fails, the mark allows to remove the folder
    except OSError as error:
        if error.errno not in OF_THE_DISK:  # not our disk: an unreadable source, or a network
            raise
        written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        raise not_written(directory, error, written) from error
    finally:
        if (partial / OURS).exists():
            shutil.rmtree(partial, ignore_errors=True)


def once(directory: Path, make: Callable[[Path], object]) -> Path:
    """`directory`, made first if it does not exist. make: writes all of it. Raises BadInput if it cannot be made."""
    lock = FileLock(f"{directory}.lock")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # a second run waits here and then finds the folder made
    except OSError as error:
        if directory.is_dir():  # of another user, who has made it: it can be read, and needs no lock
            return directory
        raise BadInput(f"{error.filename or directory} is in the way ({first_line(error)}): remove it") from error
    try:
        if not directory.exists():
            make(directory)
        if not directory.is_dir():
            raise BadInput(f"{directory} is not a folder: remove it, and it is made again")
    finally:
        lock.release()
    return directory


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Wraps a block that reads a folder of ours: raises BadInput if a file is missing, cut short or malformed."""
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
        partial.rmdir()  # empty: the run was killed before it wrote the mark
    if (partial / OURS).is_file():
        shutil.rmtree(partial)
    if os.path.lexists(partial):
        raise BadInput(f"{partial} is in the way, and mmssl did not write it: move it away")


def home() -> Path:
    """The folder of built-in and decoded data: MMSSL_HOME, or mmssl/ in the Hugging Face cache."""
    given = os.environ.get("MMSSL_HOME")
    if not given:  # unset, or set to nothing
        return Path(HF_HOME) / "mmssl"
    check_text("MMSSL_HOME", given)
    return Path(given).expanduser()


def room(limit: float | None) -> int:
    """Bytes of disk that decoded or fetched data may take there: `limit`, in GB; None: half of what is free now, the
    same on all processes."""
    if limit is not None:
        return int(limit * 1e9)
    there = next(path for path in (home(), *home().absolute().parents) if path.exists())
    free = [shutil.disk_usage(there).free // 2]
    if world_size() > 1:  # one may begin to fill the disk before another looks
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(free)
    return free[0]
