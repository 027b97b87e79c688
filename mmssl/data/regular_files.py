"""Files that data names: only regular ones are read, up to a size.

A path in a table can name anything: reading a named pipe waits for ever, /dev/zero never ends.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mmssl.errors import BadInput

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check(path: str | Path, at_most: int) -> int:
    """Its size, in bytes. Does not open it: opening a named pipe waits for a writer.

    Raises BadInput, whose message continues the path, where it is no regular file or larger than `at_most` bytes;
    OSError where it is not there.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise BadInput(f"is {KINDS.get(stat.S_IFMT(state.st_mode), 'something else')}, not a regular file")
    check_size(state.st_size, at_most)
    return state.st_size


def check_size(size: int, at_most: int) -> None:
    """Raises BadInput as `check` does, for bytes that lie in no file of their own."""
    if size > at_most:
        raise BadInput(f"holds {size / 1e6:,.0f} MB, more than the {at_most / 1e6:,.0f} MB that are read")


def read(path: str | Path, at_most: int) -> bytes:
    """What it holds. A path with a protocol (hf://, zip://) is read as `datasets` does. Raises as `check` does."""
    if "://" in str(path):
        from datasets.utils.file_utils import xopen

        with xopen(str(path), "rb") as file:
            content = file.read(at_most + 1)
        check_size(len(content), at_most)
        return content
    if not check(path, at_most):  # also of files that are made while they are read, below /proc
        return b""
    return Path(path).read_bytes()
