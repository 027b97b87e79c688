"""The one error that is the user's to mend."""

import shutil
from pathlib import Path


class BadInput(ValueError):
    """A value, file or column that was given and cannot work. The message names it and the remedy."""


def first_line(error: BaseException) -> str:
    """Libraries explain at length; their first line names the fault."""
    return str(error).partition("\n")[0] or type(error).__name__


def not_written(place: Path, error: BaseException, needed: int | None = None) -> BadInput:
    """For a write that the disk refused (full, read-only): the path, the cause, the space. needed: bytes."""
    there = next(path for path in (place, *place.absolute().parents) if path.exists())
    free = f"{shutil.disk_usage(there).free / 1e6:,.1f} MB are free"
    size = f"it needs {needed / 1e6:,.1f} MB, and {free}" if needed else free
    said = first_line(error)
    return BadInput(f"{place} could not be written ({said}): {size}. Free space there, or write to another disk")
