"""Columns of a table: which one is meant, and what becomes of the rows that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.plain_text import one_line

logger = logging.getLogger(__name__)

IMAGE = ("image", "img", "jpg", "png", "webp", "jpeg", "picture", "photo")
CAPTION = ("captions", "caption", "text", "txt", "sentences", "sentence", "title", "description", "comment")
TEXT = ("text", "sentence", "content", "review", "document", "question")
AUDIO = ("audio", "speech", "sound", "recording", "file", "wav", "flac", "mp3", "ogg", "opus")
VIDEO = ("video", "clip", "frames", "mp4", "webm", "avi", "mkv", "mov", "gif", "file", "path")
LABEL = ("label", "labels", "class", "category", "digit", "target", "intent", "kind", "fine_label")

MAX_UNUSABLE = 0.1  # share of the rows; beyond it the data set itself must be wrong
NAMED = 3  # rows that a message names


def find(names: Sequence[str], given: str | None, usual: Sequence[str], what: str, source: str = "") -> str:
    """The column given with --{what}_column, else the first of `usual` that is there. source: said first, as in
    "--dataset a.csv: ". Raises BadInput if the column is not among `names`."""
    if given is not None and given not in names:
        raise BadInput(f"{source}--{what}_column {given}: the data has no such column, only {', '.join(names)}")
    found = given or next((name for name in usual if name in names), None)
    if found is None:
        remedy = f"name it with --{what}_column"
        if what in ("image", "audio") and any(name.lower().endswith("url") or "://" in name for name in names):
            remedy = "it names files of the web; download them first, for example with img2dataset"
        raise BadInput(f"{source}no {what} column among {', '.join(names)}: {remedy}")
    return found


def named(rows: Sequence[str]) -> str:
    """The first few of them, each on one line whatever its file is called: loggers print it as it is."""
    return "; ".join(map(one_line, rows[:NAMED])) + ("; ..." if len(rows) > NAMED else "")


def unusable(found: Mapping[str, Sequence[str]], total: int, remedy: str = "repair or remove them") -> str:
    """What is left out, in words; empty where nothing is.

    found: what they are, as in "images without a caption" -> a line on each row. total: rows of the data. Raises
    BadInput if there are no rows, or if more than MAX_UNUSABLE of them cannot be used, and more than one: one of nine
    that are held out tells nothing of the data set.
    """
    if total == 0:
        raise BadInput("the data has no rows")
    said = " and ".join(f"{len(rows):,} {what} ({named(rows)})" for what, rows in found.items() if rows)
    if (left_out := sum(map(len, found.values()))) == total or left_out > max(1, MAX_UNUSABLE * total):
        raise BadInput(f"of {total:,} rows, {said}: too many to leave out; {remedy}")
    return said


def report_unusable(found: Mapping[str, Sequence[str]], total: int, remedy: str = "repair or remove them") -> None:
    """What cannot be used is said and counted. found, total, and what raises: as in `unusable`."""
    if (said := unusable(found, total, remedy)) and rank() == 0:
        logger.warning("left out of %s rows: %s", f"{total:,}", said)
