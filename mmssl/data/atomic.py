"""Folders that are written whole or not at all, and once, however many runs need them at the same time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from mmssl.errors import BadInput


@contextmanager
def whole(directory: Path) -> Iterator[Path]:
    """An empty folder, which becomes `directory` where the block ends without an error, and else is removed.

    Raises BadInput where `directory` holds something.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory} holds something already: remove it, or choose another folder")
    partial = Path(f"{directory.absolute()}.mmssl-partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def once(directory: Path, make: Callable[[Path], object]) -> Path:
    """`directory`, made if it is not there yet. make: writes it whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):  # whoever comes second waits, and finds it done
        if not directory.exists():
            make(directory)
    return directory
