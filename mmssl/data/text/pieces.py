"""Long texts in pieces, many texts in portions: what a tokenizer does with them takes bounded time and memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

PIECE = 20_000  # characters: a longer document is numbered in pieces, cut at line ends, on all cores
PORTION = 5_000_000  # characters that are encoded at a time; their tokens take about a hundred times as many bytes
LONGEST_RUN = 1000  # characters without white space, or of it: to train on one word takes the square of its length
RUN = re.compile(rf"\S{{{LONGEST_RUN}}}(?=\S)|\s{{{LONGEST_RUN}}}(?=\s)")
OF_A_TOKEN = 100  # characters, more than tokens have on average: a text of n tokens is not read beyond n times as many


def pieces(text: str, length: int = PIECE) -> Iterator[str]:
    """The text, cut behind line ends, else before blanks, else anywhere, into at most `length` characters each."""
    start = 0
    while len(text) - start > length:
        cut = text.rfind("\n", start, start + length) + 1 or text.rfind(" ", start, start + length) or 0
        cut = cut if cut > start else start + length
        yield text[start:cut]
        start = cut
    yield text[start:]


def to_train_on(texts: Iterable[str]) -> Iterator[str]:
    """All of the texts in pieces, no word and no white space in them longer than LONGEST_RUN."""
    for text in texts:
        for piece in pieces(text):
            start = 0
            for run in RUN.finditer(piece):
                yield piece[start : run.end()]
                start = run.end()
            yield piece[start:]


def portions(texts: Iterable[str], at_once: int, characters: int = PORTION) -> Iterator[list[str]]:
    """The texts in lists of at most `at_once`, and of at most `characters` where a list holds several."""
    portion, size = [], 0
    for text in texts:
        if portion and (len(portion) == at_once or size + len(text) > characters):
            yield portion
            portion, size = [], 0
        portion.append(text)
        size += len(text)
    if portion:
        yield portion
