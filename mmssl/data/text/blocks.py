"""Reads text from files, tables or data sets in large blocks of UTF-8, so that it may be larger than memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmssl.data import columns, contents, readers, sources
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    Source = str | Path | Sequence[str | Path] | Dataset | IterableDataset
    import pyarrow as pa


BLOCK = 1 << 24  # bytes
READ_HERE = ("parquet", "text", None)  # readers of `readers.reader`; a file of an unknown kind counts as text
SPACE = re.compile(  # the white space of str.split(), in UTF-8
    rb"[\t-\r\x1c- ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)


def open_blocks(source, column: str | None) -> tuple[list, Iterator[tuple[str, bytes]]]:
    """(what identifies the text, its blocks). A block is (source, UTF-8 bytes). It begins and ends between two words,
    or between two characters where a whole block has no white space.

    source, column: as in `corpus.load`. Raises BadInput if a file is missing or corrupt, if there is no text column, or
    if bytes are not UTF-8 (with file and line).
    """
    if not isinstance(source, (str, Path, list, tuple)):
        from datasets import Dataset, IterableDataset  # takes a third of a second

        if isinstance(source, (Dataset, IterableDataset)):
            name = getattr(source, "_fingerprint", None) or repr(source)
            return [name, column], _table_blocks("the dataset", source, column)
    files = [source] if isinstance(source, (str, Path)) else list(source)
    paths = [Path(file).expanduser() for file in files]
    if len(files) > 1 or (paths and paths[0].is_file() and readers.reader(paths[0]) in READ_HERE):
        for path in paths:
            if not path.is_file():
                raise BadInput(f"{path}: no such file")
            if (reader := readers.reader(path)) not in READ_HERE:
                raise BadInput(f"{path}: a list of files takes only text and Parquet, not {reader}")
            if column and reader != "parquet":
                raise BadInput(f"--text_column {column}: {path} is read as plain text, which has no columns")
        states = [path.stat() for path in paths]
        name = [[str(p.resolve()), s.st_size, s.st_mtime_ns] for p, s in zip(paths, states, strict=True)]
        return [name, column], (block for path in paths for block in file_blocks(path, column))
    if not files:
        raise BadInput("no files were given")
    dataset = sources.load(str(files[0]), texts=True)["train"]
    return [dataset._fingerprint, column], _table_blocks(str(files[0]), dataset, column)


def file_blocks(path: Path, column: str | None) -> Iterator[tuple[str, bytes]]:
    import pyarrow.parquet as pq

    if contents.kind_of(path) == "parquet":
        with pq.ParquetFile(path) as file:
            column = text_column(str(path), file.schema_arrow, column)
            batches = (batch.column(0) for batch in file.iter_batches(1 << 14, columns=[column]))
            yield from ((str(path), block) for block in in_blocks(_as_lines(path, batch) for batch in batches))
        return
    lines, rest, ended = 0, b"", True
    for read in contents.text(path, BLOCK):
        block = rest + read
        cut = _last_break(block)
        block, rest = block[:cut], block[cut:]
        contents.check_utf8(path, block, lines)
        lines, ended = lines + block.count(b"\n"), block.endswith(b"\n")
        yield str(path), block
    if rest or not ended:
        contents.check_utf8(path, rest, lines)
        yield str(path), rest + b"\n"


def _last_break(block: bytes) -> int:
    """The number of bytes before the cut: after the last line; if one line fills the block, after the last word; if
    there is no white space either, after the last complete character, so that memory stays bounded."""
    if cut := block.rfind(b"\n") + 1 or block.rfind(b" ") + 1:
        return cut
    for space in SPACE.finditer(block):
        cut = space.end()
    return cut or len(block) - _begun_character(block)


def _begun_character(block: bytes) -> int:
    """The number of bytes, 0 to 3, at the end of a block that belong to a character which is not complete yet."""
    for back in range(1, min(3, len(block)) + 1):
        first = block[-back]
        if first >= 0xC0:
            return back if back < (2 if first < 0xE0 else 3 if first < 0xF0 else 4) else 0
        if first < 0x80:
            break
    return 0


def _table_blocks(name: str, dataset: Dataset | IterableDataset, column: str | None) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    from datasets import Dataset

    if isinstance(dataset, Dataset):
        column = text_column(name, dataset.data.schema, column)
        rows = dataset.select_columns(column).with_format("arrow").iter(1 << 14)
        texts = (_as_lines(name, chunk) for table in rows for chunk in table.column(0).chunks)
    else:
        column = column or "text"
        texts = (_as_lines(name, pa.array(rows[column], pa.large_string())) for rows in dataset.iter(1000))
    return ((name, block) for block in in_blocks(texts))


def text_column(name: str, schema: pa.Schema, column: str | None) -> str:
    import pyarrow as pa

    strings = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    usual = (*columns.TEXT, *strings) if len(strings) == 1 else columns.TEXT
    if not strings:
        kinds = {"extension<arrow.json>": "values of several kinds"}
        found = ", ".join(f"{field.name} ({kinds.get(str(field.type), field.type)})" for field in schema)
        raise BadInput(f"{name}: no column of strings among {found}")
    return columns.find(strings, column, usual, "text", f"{name}: ")


def _as_lines(name: str | Path, texts: pa.Array) -> memoryview | bytes:
    """Texts joined by line ends; None becomes an empty line. Raises BadInput if a text is not UTF-8."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        texts.validate(full=True)  # Arrow reads a column of strings without checking their bytes
    except pa.ArrowInvalid as error:
        raise BadInput(f"{name}: {error}; the column must hold UTF-8") from error
    texts = pc.fill_null(texts.cast(pa.large_string()), "")
    lines = pc.binary_join_element_wise(texts, pa.scalar("", pa.large_string()), pa.scalar("\n", pa.large_string()))
    _, ends, letters = lines.buffers()
    return memoryview(letters)[: np.frombuffer(ends, np.int64)[len(lines)]] if len(lines) else b""


def in_blocks(texts: Iterable[str | bytes | memoryview]) -> Iterator[bytes]:
    """Short texts, each ending in a line end, joined into blocks of about BLOCK bytes."""
    gathered, size = [], 0
    for text in texts:
        text = text.encode() if isinstance(text, str) else text
        gathered.append(text)
        size += len(text)
        if size >= BLOCK:
            yield b"".join(gathered)
            gathered, size = [], 0
    yield b"".join(gathered)
