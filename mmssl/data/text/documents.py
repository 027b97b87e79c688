"""The documents of a text data set, for masked language models, character models and predictive coding.

A document is a row of a table or, in a text file, a block between blank lines; without blank lines, the whole file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmssl.arguments import Flags, flag
from mmssl.data import atomic, contents, folders, readers, sources
from mmssl.data.text import in_place
from mmssl.data.text.blocks import file_blocks, text_column
from mmssl.errors import BadInput, not_written

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

SOURCES = "wikipedia (built in), text files (.txt, .gz; with commas), a folder, Parquet, or a Hub id"
TEXT_FILES = (".txt", ".text", ".md", ".tokens", ".raw")  # in a folder; each also packed, as .txt.gz
AT_ONCE = 256  # documents, of which one at a time is held as a Python string
SOME = 32 << 20  # bytes of a stream that its tokenizer is trained on
FEW = 10  # documents: with fewer, the last tenth of each is held out instead of whole documents


@dataclass
class DocumentArgs(Flags):
    """Flags of recipes that learn from documents alone."""

    dataset: str = flag(
        "wikipedia",
        f"{SOURCES}. A document is a row of a table or, in a text file, what lies between blank lines",
    )
    text_column: str | None = flag(None, "text column of a table; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents held out if the data has no test part (at most a tenth)", at_least=1)


@dataclass
class StreamingArgs(Flags):
    """Of those that can read them where they lie."""

    streaming: bool = flag(False, "read and tokenise text where it lies, during training, for data beyond the disk")


def load(
    name: str,
    column: str | None = None,
    *,
    held_out: int = 1000,
    whole: bool = False,
    streaming: bool = False,
    seed: int = 0,
) -> tuple[Dataset | in_place.Texts, Dataset]:
    """(train, held out), each with one column, "text", and no blank documents. Kept on disk for the next run.

    name:      text files (also packed as .gz .xz .bz2 .zst, also UTF-16 with its mark; several separated by commas), a
               folder of them, or whatever `sources.load` takes: a built-in name, Parquet, CSV, JSON lines, a Hub id.
    column:    the text column of a table. Default: the first with a usual name, else the only one of strings.
    held_out:  documents to hold out if the data has no test part: at most a tenth, always the same ones. With fewer
               than ten documents, the last tenth of the characters of each is held out.
    whole:     text files are not cut at blank lines.
    streaming: read where they lie while training; train is in_place.Texts.

    Raises BadInput if a file is missing, if bytes are not UTF-8 (with file and line), if there is no text column, or if
    there is no text.
    """
    from accelerate import PartialState

    room = atomic.room(None) if streaming else 0  # outside: processes agree on it
    with PartialState().main_process_first():
        files = text_files(name)
        if files and column:
            raise BadInput(f"--text_column {column}: {name} is plain text, which has no columns")
        if streaming:
            return in_place.find(name, files, column, held_out, room, whole)
        if files:
            data = {part: _read(paths, whole) for part, paths in files.items()}
        else:
            found = sources.load(name, texts=True)
            data = {part: _one_column(name, rows, column) for part, rows in found.items()}
        for part, rows in data.items():
            if len(rows) == 0:
                raise BadInput(f"--dataset {name}: the {part} data holds no text, only empty rows")
        if "test" not in data and len(data["train"]) < FEW:
            return _cut(name, data["train"]["text"])
        return sources.split(data, held_out, seed)


@dataclass(frozen=True)
class Counts:
    """Sizes of the training and held-out documents; blank lines do not count. repeated: training lines that occurred
    before. leaked: held-out lines that also occur in the training documents."""

    documents: int
    characters: int
    lines: int
    repeated: int
    held_out_documents: int
    held_out_lines: int
    leaked: int

    def __str__(self) -> str:
        return (
            f"{self.documents:,} document{'s' * (self.documents != 1)} of {self.characters:,} characters; "
            f"{self.repeated:,} of their {self.lines:,} lines ({self.repeated / max(1, self.lines):.1%}) repeat an "
            f"earlier one; {self.leaked:,} of the {self.held_out_lines:,} held-out lines "
            f"({self.leaked / max(1, self.held_out_lines):.1%}) occur in them"
        )


def count(train: Dataset, held_out: Dataset) -> Counts:
    """Count documents, lines and repeated lines. Reads everything once, about 2 million lines per second."""
    here, characters = _lines(train)
    there, _ = _lines(held_out)
    known = np.unique(here)
    leaked = int(np.isin(there, known).sum())
    repeated = len(here) - len(known)
    return Counts(len(train), characters, len(here), repeated, len(held_out), len(there), leaked)


def some(train: Dataset | in_place.Texts) -> Dataset:
    """What a tokenizer is trained on: everything or, of texts that are read where they lie, SOME bytes of them."""
    if not isinstance(train, in_place.Texts):
        return train
    from datasets import Dataset

    texts, left = [], SOME
    for text in train.each():
        texts.append(text)
        left -= len(text.encode())
        if left <= 0:
            break
    return Dataset.from_dict({"text": texts}, features=_features())


def described(train: Dataset | in_place.Texts, held_out: Dataset) -> str:
    """The training data in words."""
    if isinstance(train, in_place.Texts):
        return f"{train.size.sum() / 1e6:,.1f} MB of text, read during training"
    return str(count(train, held_out))


def each(data: Dataset) -> Iterator[str]:
    """The texts, one at a time in memory: a document may be large, and so many of them larger than memory."""
    for table in data.with_format("arrow").iter(AT_ONCE):
        for text in table.column("text"):
            yield text.as_py()


def _features() -> Features:
    from datasets import Features, Value

    return Features({"text": Value("large_string")})  # one document may be larger than 2 GiB


def _lines(data: Dataset) -> tuple[np.ndarray, int]:
    """(lines,) int64: a hash of each line that is not blank; and the number of characters of all documents."""
    hashes, characters = [np.empty(0, np.int64)], 0
    for text in each(data):
        characters += len(text)
        lines = (line.strip() for line in text.split("\n"))
        hashes.append(np.fromiter((hash(line) for line in lines if line), np.int64))
    return np.concatenate(hashes), characters


def text_files(name: str) -> dict[str, list[str]] | None:
    """{"train": files, "test": ... if there are any}, or None if `name` is not text files."""
    if name in sources.BUILT_IN:
        return None
    paths = [Path(part).expanduser() for part in sources.listed(name)]
    if len(paths) == 1 and paths[0].is_dir():
        files = folders.listed(paths[0])
        tables = [f for f in files if contents.suffix(f) in readers.READERS and not _is_text(f)]
        texts, tables = [f for f in files if _is_text(f)], [f for f in tables if f.stem != "metadata"]
        of_texts, of_tables = (sum(file.stat().st_size for file in found) for found in (texts, tables))
        if not texts or of_tables > of_texts:
            return None
        folders.refuse_runs(paths[0], files)
        folders.say_left_out(paths[0], tables, "a folder of texts, which hold most")
        parts = folders.by_split(paths[0], texts)
        test = next((parts[split] for split in folders.HELD_OUT_NAMES if split in parts), None)
        train = parts.get("train", test)
        return {"train": train} | ({"test": test} if test and test is not train else {})
    for path in paths:
        if path.is_file():
            text = readers.reader(path) in ("text", None)  # a file of an unknown kind counts as text
        elif text := _is_text(path) or len(paths) > 1:
            raise BadInput(f"--dataset {path}: no such file")
        if not text and len(paths) == 1:
            return None
        if not text:
            raise BadInput(f"--dataset {path}: a list with commas takes only text files")
    return {"train": list(map(str, paths))}


def _is_text(path: Path) -> bool:
    return contents.suffix(path) in TEXT_FILES


def _read(files: list[str], whole: bool) -> Dataset:
    # size and time are part of the cache key: changed files are read again
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    states = [f"{os.stat(file).st_size} {os.stat(file).st_mtime_ns}" for file in files]
    given = {"files": files, "states": states, "whole": whole}
    try:
        return Dataset.from_generator(
            _documents, features=_features(), gen_kwargs=given, cache_dir=str(sources.home() / "documents")
        )
    except DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            raise not_written(sources.home() / "documents", cause) from error
        raise (cause if isinstance(cause, BadInput) else error) from None


def _documents(files: list[str], states: list[str], whole: bool) -> Iterator[dict[str, str]]:
    found = False
    for file in files:
        gathered: list[str] = []
        for _, block in file_blocks(Path(file), None):
            for line in StringIO(block.decode().replace("\r\n", "\n")):
                if whole or not line.isspace() or not line.endswith("\n"):
                    gathered.append(line)
                elif gathered:
                    found = True
                    yield {"text": "".join(gathered)}
                    gathered = []
        if not "".join(gathered).isspace() and gathered:
            found = True
            yield {"text": "".join(gathered)}
    if not found:
        raise BadInput(f"{', '.join(files)}: no text: empty, or only white space")


def _one_column(name: str, rows: Dataset, column: str | None) -> Dataset:
    column = text_column(f"--dataset {name}", rows.features.arrow_schema, column)
    rows = rows.select_columns(column)
    rows = rows if column == "text" else rows.rename_column(column, "text")
    # by Arrow, which does not hold a thousand rows as Python strings
    return rows.with_format("arrow").filter(_with_text, batched=True).with_format(None)


def _with_text(table: pa.Table) -> list[bool]:
    import pyarrow.compute as pc

    text = pc.fill_null(table.column("text"), "")
    return pc.invert(pc.or_(pc.equal(text, ""), pc.utf8_is_space(text))).to_pylist()


def _cut(name: str, texts: list[str]) -> tuple[Dataset, Dataset]:
    """The first nine tenths of each text, and its last tenth."""
    at = [len(text) * 9 // 10 for text in texts]
    parts = [text[:n] for text, n in zip(texts, at, strict=True)], [text[n:] for text, n in zip(texts, at, strict=True)]
    train, test = ([text for text in part if text and not text.isspace()] for part in parts)
    if not train or not test:
        raise BadInput(f"--dataset {name}: too little text to hold out a tenth of it and train on the rest")
    from datasets import Dataset

    return tuple(Dataset.from_dict({"text": part}, features=_features()) for part in (train, test))
