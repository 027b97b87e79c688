"""Safe JSON: files that are nested deeper than DEPTH are not read, and NaN is not written.

Parsers recurse: 50,000 brackets raise a RecursionError, and crash the process in pyarrow's parser. Python also writes
NaN and Infinity, which are not JSON: browsers, jq and the Hub refuse such a file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

DEPTH = 100  # levels; tokenizer.json, the most deeply nested file of transformers, has about ten
BLOCK = 1 << 22  # bytes

_CHANGE = np.zeros(256, np.int8)  # by how much each byte changes the depth
_CHANGE[list(b"[{")], _CHANGE[list(b"]}")] = 1, -1


class NotJson(ValueError):
    """The message names the file."""


def read(file: Path):
    """The content of the file. Raises NotJson if it is nested too deeply or is not JSON."""
    check(file)
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise NotJson(f"{file} is not a valid JSON file, cut off or damaged: {error}") from error


def loads(text: str):
    """`json.loads`. Raises NotJson if the text is nested too deeply."""
    _scan(text.encode(errors="replace"), 0, False, "this JSON text")
    return json.loads(text)


def dumps(value, indent: int | None = None) -> str:
    """`json.dumps`, with null for NaN and infinite numbers, NumPy's included, and a string for what JSON cannot
    represent."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, default=str)


def _finite(value):
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check(file: Path) -> None:
    """Raise NotJson, naming the file, if it is nested too deeply, or no regular file: reading a named pipe waits for
    ever. Reads it in blocks."""
    if file.exists() and not file.is_file():
        raise NotJson(f"{file} is not a regular file")
    depth, in_string, rest = 0, False, b""
    with open(file, "rb") as f:
        while block := f.read(BLOCK):
            block = rest + block
            ends = len(block.rstrip(b"\\"))  # an escape must not be cut in two
            block, rest = block[:ends], block[ends:]
            depth, in_string = _scan(block, depth, in_string, str(file))


def _scan(block: bytes, depth: int, in_string: bool, name: str) -> tuple[int, bool]:
    """(depth, whether inside a string) after a block, given both before it. Brackets in strings do not count."""
    text = np.frombuffer(block.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    if not len(text):
        return depth, in_string
    inside = (np.cumsum(text == ord('"'), dtype=np.uint8) + np.uint8(in_string)) & 1
    line_ends = text == ord("\n")
    if inside[line_ends].any():  # an unpaired quote: a JSON string cannot contain a line end, so the string ends here
        before = np.maximum.accumulate(np.where(line_ends, np.arange(len(text)), -1))
        inside ^= np.where(before >= 0, inside[before], 0).astype(np.uint8)
    changes = _CHANGE[text[inside == 0]]
    levels = depth + changes[changes != 0].cumsum(dtype=np.int64)
    if len(levels):
        levels -= np.minimum.accumulate(np.minimum(levels, 0))  # surplus closing brackets must not offset later ones
        if levels.max() > DEPTH:
            raise NotJson(f"{name}: brackets nested more than {DEPTH} deep; such a file is not read")
        depth = int(levels[-1])
    return depth, bool(inside[-1])
