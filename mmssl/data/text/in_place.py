"""Documents of Parquet and text files, read where they lie: nothing is converted, and only what is asked for is read.

Text that lies together (a row group of a Parquet file, BLOCK bytes of a text file) is a block; small ones that follow
each other are read as one. Where the blocks lie is known before any text is read, so that reading can begin anywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from mmssl.data import parquet, readers, shards, sources, windows
from mmssl.data.text.blocks import SPACE, text_column
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

BLOCK = 1 << 20  # bytes of a text file
REACH = 1 << 16  # bytes behind the end of a block in which a line end is sought
ROWS = 1000  # of a data set, in a block
FEW = 10  # documents in a block; with fewer, only each tenth block holds one out
BLANK_LINES = re.compile(rb"\n(?:[^\S\n]*\n)+")


class Block(NamedTuple):
    """
    letters: UTF-8. spans: (documents, 2) int64: where each begins and ends in it. None is empty or white space.
    """

    letters: bytes | memoryview
    spans: np.ndarray

    def texts(self) -> Iterator[str]:
        for start, end in self.spans.tolist():
            yield bytes(self.letters[start:end]).decode()

    def at(self, place: float) -> tuple[int, int]:
        """(document, byte of it) at `place`, from 0 to 1, of all of them: where a word begins."""
        ends = np.diff(self.spans).cumsum()
        byte = int(place * ends[-1])
        document = int(np.searchsorted(ends, byte, side="right"))
        start, end = self.spans[document].tolist()
        inside = byte - int(ends[document]) + end - start
        word = _word_after(self.letters, start + inside, end) if inside else start
        return (document, word - start) if word < end else ((document + 1) % len(self.spans), 0)

    def from_(self, place: tuple[int, int], size: int) -> list[str]:
        """At least `size` bytes of documents, the first one from `place` on, the last one cut behind a word. After the
        last document comes the first one again."""
        (document, skipped), found = place, []
        while size > 0:
            start, end = self.spans[document].tolist()
            start = min(start + skipped, end)
            cut = end if end - start <= size else _word_after(self.letters, start + size, end)
            if cut > start:
                found.append(bytes(self.letters[start:cut]).decode())
            size -= cut - start + 1  # 1: else only empty ones would never end
            document, skipped = (document + 1) % len(self.spans), 0
        return found


class Reader(Protocol):
    """size: (blocks,) bytes."""

    size: np.ndarray

    def load(self, block: int) -> tuple[bytes | memoryview, np.ndarray]:
        """(letters, spans) as in Block, of which some may be blank. Raises BadInput if the text is not UTF-8."""


class Texts:
    """The documents of a reader, whose blocks that begin within the same BLOCK bytes are one: a sequence lies within a
    block, and many a file is shorter than a sequence."""

    def __init__(self, reader: Reader, left_out: frozenset[bytes] = frozenset()) -> None:
        """left_out: SHA-256 of documents that are treated as if they were not there."""
        self.reader, self.left_out = reader, left_out
        begins = (reader.size.cumsum() - reader.size) // BLOCK
        first = np.flatnonzero(np.diff(begins, prepend=-1))
        self.edges, self.size = [*first.tolist(), len(begins)], np.add.reduceat(reader.size, first)
        self.blocks = windows.Held(self._load, self.size)

    def _load(self, block: int) -> Block:
        parts = [self.reader.load(each) for each in range(*self.edges[block : block + 2])]
        letters, spans = parts[0] if len(parts) == 1 else _together(parts)
        kept = [self._is_used(letters[start:end]) for start, end in spans.tolist()]
        return Block(letters, spans[np.array(kept, bool)])

    def _is_used(self, text: bytes | memoryview) -> bool:
        text = bytes(text)
        left_out = self.left_out and _digest(text) in self.left_out
        return not (left_out or text.decode().isspace() or not text)

    def order(self) -> list[int]:
        """The blocks in an order that is always the same but not that of the files."""
        return np.random.default_rng(0).permutation(len(self.size)).tolist()

    def each(self) -> Iterator[str]:
        """All documents, block after block in that order."""
        for block in self.order():
            yield from self.blocks[block].texts()

    def split(self, count: int) -> tuple[Texts, list[str]]:
        """(the rest, at most `count` documents: the first ones of shards.HELD_OUT_BLOCKS blocks, and at most a tenth of
        each). A document that equals one of these is not in the rest."""
        chosen = self.order()[: shards.HELD_OUT_BLOCKS]
        each, found, single = -(-count // len(chosen)), [], max(1, len(self.size) // FEW)
        for block in chosen:
            texts = list(self.blocks[block].texts())
            if len(texts) < FEW:
                texts, single = texts[: min(1, single)], single - 1
            else:
                texts = texts[: min(each, len(texts) // FEW)]
            found += texts[: count - len(found)]
        return Texts(self.reader, frozenset(_digest(text.encode()) for text in found)), found


def find(
    name: str, files: dict[str, list[str]] | None, column: str | None, held_out: int, room: int, whole: bool = False
) -> tuple[Texts, datasets.Dataset]:
    """(training, held out): Texts and a data set of one column, "text".

    files: the text files, by part; None: a table, see `sources.load`. column: of a table. held_out: documents held out,
    of the test data if there is some, else of the training data, at most a tenth. room: bytes on disk for what is
    fetched from the Hub. whole: text files are not cut at blank lines. Raises BadInput if there is no text.
    """
    import datasets

    if files:
        parts = {part: TextFiles(paths, whole) for part, paths in files.items()}
    elif found := sources.shards(name, texts=True):
        if readers.reader(Path(found["train"][0])) == "webdataset":
            raise BadInput(
                f"--dataset {name} --streaming: tar files; of texts, only Parquet and text files are read so"
            )
        chosen = text_column(f"--dataset {name}", parquet.schema(found["train"][0]), column)
        parts = {part: Parquet(paths, chosen, room) for part, paths in found.items()}
    else:
        rows = sources.load(name, texts=True)
        chosen = text_column(f"--dataset {name}", rows["train"].features.arrow_schema, column)
        parts = {part: Table(name, rows[part], chosen) for part in rows}
    train = Texts(parts["train"])
    if "test" in parts:
        test = Texts(parts["test"])
        texts = [text for text, _ in zip(test.each(), range(held_out), strict=False)]
        train = Texts(parts["train"], frozenset(_digest(text.encode()) for text in texts))
    else:
        train, texts = train.split(held_out)
    if not texts or next(train.each(), None) is None:
        raise BadInput(
            f"--dataset {name} --streaming: too little text to hold out a part of it and train on the rest; leave "
            "--streaming out"
        )
    features = datasets.Features({"text": datasets.Value("large_string")})
    return train, datasets.Dataset.from_dict({"text": texts}, features=features)


class TextFiles:
    """files: paths. A document is a text between blank lines or, `whole`, a file; one that goes beyond its block is cut
    at a line end. Packed files, and those in UTF-16, are first unpacked into the cache."""

    def __init__(self, files: Sequence[str], whole: bool = False) -> None:
        self.whole = whole
        self.files = [readers.plain(Path(file)) for file in files]
        length = [file.stat().st_size for file in self.files]
        self.count = np.array([-(-size // BLOCK) for size in length], dtype=np.int64)
        if not self.count.sum():
            raise BadInput(f"{', '.join(files)}: no text: empty")
        self.first = np.concatenate([[0], self.count.cumsum()])
        self.size = np.concatenate(
            [np.minimum(BLOCK, size - BLOCK * np.arange(n)) for size, n in zip(length, self.count, strict=True)]
        )

    def load(self, block: int) -> tuple[bytes, np.ndarray]:
        number = int(np.searchsorted(self.first, block, side="right")) - 1
        start = (block - int(self.first[number])) * BLOCK
        with open(self.files[number], "rb") as opened:
            opened.seek(max(0, start - 1))
            read = opened.read((start > 0) + BLOCK + REACH)  # one more: a line may end right before the block
        begin = _line_after(read[: 1 + REACH]) if start else 0
        end = _line_after(read[(start > 0) + BLOCK - 1 :]) + (start > 0) + BLOCK - 1
        letters = read[begin:end].replace(b"\r\n", b"\n")
        try:
            letters.decode()
        except UnicodeDecodeError as error:
            place = max(0, start - 1) + begin + error.start
            raise BadInput(
                f"{self.files[number]}, near byte {place:,}: 0x{letters[error.start]:02x} is not UTF-8. Convert the "
                f"file from its encoding: iconv -f cp1252 -t utf-8 {self.files[number].name} (cp1252: Western European)"
            ) from error
        blanks = [] if self.whole else [match.span() for match in BLANK_LINES.finditer(letters)]
        edges = np.array([0, *(edge for blank in blanks for edge in (blank[0] + 1, blank[1])), len(letters)], np.int64)
        return letters, edges.reshape(-1, 2)


class Parquet(parquet.Parquet):
    """Rows of Parquet files are documents."""

    def __init__(self, files: Sequence[str], column: str, room: int = 0) -> None:
        super().__init__(files, [column], room, check=lambda file, schema, column: text_column(file, schema, column))

    def load(self, block: int) -> tuple[bytes | memoryview, np.ndarray]:
        name = f"{self.files[self.file[block]]}, row group {self.group[block]}"
        return _of_arrow(name, super().load(block).column(0))


class Table:
    """Rows of a data set that is mapped into memory are documents."""

    def __init__(self, name: str, rows: datasets.Dataset, column: str) -> None:
        import pyarrow.compute as pc

        self.name, self.rows = name, rows.select_columns(column).with_format("arrow")
        lengths = (pc.sum(pc.binary_length(table.column(0))).as_py() or 0 for table in self.rows.iter(ROWS))
        self.size = np.fromiter(lengths, np.int64)

    def load(self, block: int) -> tuple[bytes | memoryview, np.ndarray]:
        last = min(len(self.rows), (block + 1) * ROWS)
        return _of_arrow(self.name, self.rows[block * ROWS : last].column(0))


def _of_arrow(name: str, texts: pa.ChunkedArray) -> tuple[bytes | memoryview, np.ndarray]:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        texts.validate(full=True)  # Arrow reads a column of strings without checking their bytes
    except pa.ArrowInvalid as error:
        raise BadInput(f"{name}: {error}; the column must hold UTF-8") from error
    chunks = pc.fill_null(texts.cast(pa.large_string()), "").chunks
    if not sum(map(len, chunks)):
        return b"", np.empty((0, 2), np.int64)
    joined = pa.concat_arrays(chunks)
    _, offsets, letters = joined.buffers()
    edges = np.frombuffer(offsets, np.int64)[joined.offset : joined.offset + len(joined) + 1]
    return memoryview(letters or b""), np.stack([edges[:-1], edges[1:]], 1)


def _together(parts: list[tuple[bytes | memoryview, np.ndarray]]) -> tuple[bytes, np.ndarray]:
    letters, spans = zip(*parts, strict=True)
    begins = np.cumsum([0, *map(len, letters[:-1])])
    return b"".join(letters), np.concatenate([each + begin for each, begin in zip(spans, begins, strict=True)])


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text.strip()).digest()


def _line_after(read: bytes) -> int:
    """The number of bytes up to the first line that begins in `read`, behind its first byte; else the first word; else
    the first character."""
    if cut := read.find(b"\n") + 1 or read.find(b" ") + 1:
        return cut
    cut = min(1, len(read))
    while cut < len(read) and read[cut] & 0xC0 == 0x80:
        cut += 1
    return cut


def _word_after(letters: bytes | memoryview, place: int, end: int) -> int:
    """The first place from `place` on where a word begins, else a character; at most `end`."""
    if space := SPACE.search(letters, place - 1, min(end, place + 256)):
        return min(space.end(), end)
    while place < end and letters[place] & 0xC0 == 0x80:
        place += 1
    return min(place, end)
