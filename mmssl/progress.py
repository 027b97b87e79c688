"""Progress bars, redrawn on a terminal and in a notebook, a line each minute in a log file; and what libraries say."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps

from tqdm import std
from tqdm.auto import tqdm

EVERY = 60  # seconds between two lines in a log file
LONG = 5  # seconds after which a bar is shown, if it is not one of the training


class _Lines:
    """A file for tqdm that writes each state of a bar as a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def redrawn() -> bool:
    """Whether a bar can be redrawn in place: the output is a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def bar(**settings) -> tqdm:
    """A tqdm with these settings (iterable, total, desc, unit, disable, ...)."""
    if redrawn():
        return tqdm(**{"dynamic_ncols": True, "leave": False, "delay": LONG} | settings)
    return tqdm(**{**settings, **_lines()})


@cache
def calm_libraries() -> None:
    """In this process, the bars of libraries ("Map", "Loading weights", "Writing model shards") follow the same rules:
    nothing is shown of what takes less than LONG seconds, or EVERY seconds in a log file."""
    begin = (
        std.tqdm.__init__
    )  # of the class that all others extend; a switch for each library would end all of its bars

    @wraps(begin)
    def begin_calmly(self, *arguments, **settings) -> None:
        calm = {} if len(arguments) > 3 else {"delay": LONG} if redrawn() else _lines()  # iterable, desc, total
        begin(self, *arguments, **calm | settings)

    std.tqdm.__init__ = begin_calmly


@contextmanager
def silent(library: str) -> Iterator[None]:
    """Inside, the library logs nothing: what it says of bad input, an error says in one sentence."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _lines() -> dict:
    return {
        "file": _Lines(), "mininterval": EVERY, "maxinterval": EVERY, "miniters": 1, "delay": EVERY, "leave": False,
        "bar_format": "{desc}: {n_fmt} of {total_fmt}, {elapsed} elapsed, {remaining} left{postfix}",
    }  # fmt: skip
