"""The error for mistakes that the user can fix."""

import shutil
from pathlib import Path


class BadInput(ValueError):
    """An invalid value, file or column. The message names it and says how to fix it."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message: libraries print many, but the first names the fault."""
    return str(error).partition("\n")[0] or type(error).__name__


def not_written(place: Path, error: BaseException, needed: int | None = None) -> BadInput:
    """The error for a failed write (disk full, read-only), with path, cause and free space. needed: bytes."""
    existing = next(path for path in (place, *place.absolute().parents) if path.exists())
    free = f"{shutil.disk_usage(existing).free / 1e6:,.1f} MB are free"
    size = f"it needs {needed / 1e6:,.1f} MB, and {free}" if needed else free
    cause = first_line(error)
    return BadInput(f"{place} could not be written ({cause}): {size}. Free space there, or write to another disk")
