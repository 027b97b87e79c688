"""Rows of Parquet and tar files, read where they lie: nothing is converted, and only what is asked for is fetched.

Rows are numbered in the order of the files. Rows that lie together (a row group of a Parquet file, a run of members of
a tar file) are a block. How many rows each block holds is known before anything else is read, so that the place of a
row is arithmetic: an epoch can begin anywhere, and any process and any worker can read any batch.

An epoch's order is a function of its seed: all blocks in a new order, and within a window, as many blocks as WINDOW
bytes hold, all rows in a new order. A reader holds one window in memory, however large the data.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmssl import bounded_json
from mmssl.data import readers, sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.file_tables import IMAGES
from mmssl.data.webdataset import FIRST, MAX_MEMBER, TEXTS, caption_of
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Features

WINDOW = 1 << 28  # stored bytes that are mixed with each other
RUN = 128  # samples in a block of a tar file
LONGEST_TEXT = 1 << 20  # bytes that are read of a text in a tar file
HELD_OUT_BLOCKS = 16  # that held-out rows are taken from, so that sorted data is held out evenly
AT_A_TIME = 16  # Parquet files whose number of rows is read at the same time
REMOTE = "hf://"


class Reader(Protocol):
    """Random access to the rows of some files.

    columns: that are read; the first one holds images. features: what they hold.
    first: (blocks + 1,) int64: block b holds rows first[b] to first[b + 1]. size: (blocks,) bytes.
    """

    columns: Sequence[str]
    features: Features
    first: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        """Rows."""

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """column -> value, for each row; an image is what `decoding.opened` takes, or None."""

    def only(self, columns: Sequence[str]) -> Reader:
        """The same rows with fewer columns."""


class Shards:
    """A part of the rows of a reader. Position i is row `rows[i]` of the source; neighbours lie in the same block."""

    def __init__(self, reader: Reader, rows: Rows) -> None:
        self.reader, self.rows = reader, rows

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, count: int) -> tuple[Shards, Shards]:
        """(the rest, `count` rows: the first ones of some blocks)."""
        return tuple(Shards(self.reader, rows) for rows in self.rows.split(count))

    def as_dataset(self) -> Dataset:
        """All rows, in the order of the files, in memory."""
        from datasets import Dataset

        rows = self.reader.read(sorted(self.rows[:].tolist()))
        image = self.reader.columns[0]
        rows = [row | {image: _as_stored(row[image])} for row in rows]
        return Dataset.from_list(rows, features=self.reader.features)


class Rows:
    """Runs of row numbers, one for each block, in an order that is always the same but not that of the files: the first
    positions are thus of many files. Takes memory for each block, not for each row.

    first, count: (blocks,) int64: a block's rows are first to first + count. size: (blocks,) bytes.
    """

    def __init__(self, first: np.ndarray, count: np.ndarray, size: np.ndarray) -> None:
        some = count > 0
        self.first, self.count, self.size = first[some], count[some], size[some]
        self.begin = np.concatenate([[0], self.count.cumsum()])  # position of a block's first row

    @classmethod
    def of(cls, reader: Reader) -> Rows:
        order = np.random.default_rng(0).permutation(len(reader.size))
        return cls(reader.first[:-1][order], np.diff(reader.first)[order], reader.size[order])

    def __len__(self) -> int:
        return int(self.begin[-1])

    def __getitem__(self, positions: Tensor | slice) -> Tensor:
        """int64 rows of the source, in the shape of `positions`."""
        if isinstance(positions, slice):
            positions = torch.arange(*positions.indices(len(self)))
        at = positions.numpy()
        if at.size and not (at.min() >= 0 and at.max() < len(self)):
            raise IndexError(f"position {at.max()} of {len(self)} rows")
        block = np.searchsorted(self.begin, at, side="right") - 1
        return torch.from_numpy(self.first[block] + at - self.begin[block])

    def split(self, count: int) -> tuple[Rows, Rows]:
        """(the rest, `count` rows: the first ones of HELD_OUT_BLOCKS blocks, or of more where these hold too few)."""
        each, taken, left = -(-count // HELD_OUT_BLOCKS), np.zeros_like(self.count), count
        each = max(each, -(-count // max(1, len(self.count))))
        for several in (each, count):  # a second time where blocks hold fewer than `each`
            for block in range(len(self.count)):
                if not left:
                    break
                more = min(several, self.count[block] - taken[block], left)
                taken[block], left = taken[block] + more, left - more
        rest = Rows(self.first + taken, self.count - taken, self.size)
        return rest, Rows(self.first, taken, self.size)

    def order(self, seed: int) -> Order:
        """The positions of an epoch."""
        return Order(self, seed)


class Order:
    """All positions of `rows`, each once, mixed; `order[a:b]` computes a part of them."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.blocks = np.random.default_rng(seed).permutation(len(rows.count))
        size, count = rows.size[self.blocks], rows.count[self.blocks]
        window = (size.cumsum() - size) // WINDOW
        # (windows + 1,): the first block of each window, and its first place in the order
        self.edges = np.concatenate([np.flatnonzero(np.diff(window, prepend=-1)), [len(size)]])
        self.begin = np.concatenate([[0], count.cumsum()])[self.edges]
        self.window: tuple[int, np.ndarray] = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: slice) -> Tensor:
        place, stop, _ = places.indices(len(self))
        parts = []
        while place < stop:
            number = int(np.searchsorted(self.begin, place, side="right")) - 1
            start = int(self.begin[number])
            parts.append(self._positions(number)[place - start : stop - start])
            place += len(parts[-1])
        return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.int64))

    def _positions(self, number: int) -> np.ndarray:
        if self.window[0] != number:
            blocks, begin = self.blocks[self.edges[number] : self.edges[number + 1]], self.rows.begin
            positions = np.concatenate([np.arange(begin[block], begin[block + 1]) for block in blocks])
            self.window = number, np.random.default_rng([self.seed, number]).permutation(positions)
        return self.window[1]


def find(
    name: str, choose: Callable[[Sequence[str]], Sequence[str]], held_out: int, room: int
) -> tuple[Shards, Shards] | None:
    """(training, held out); None if the data does not lie in Parquet or tar files.

    choose: names of all columns -> those to be read, that of images first. held_out: rows held out, of the test data if
    there is some, else of the training data (at most a tenth). room: bytes on disk for what is fetched from the Hub.
    """
    if (files := sources.shards(name)) is None:
        return None
    one = files["train"][0]
    packed = not one.startswith(REMOTE) and readers.reader(Path(one)) == "webdataset"
    chosen = choose(_kinds(files["train"]) if packed else names(one))
    shards = {}
    for part, paths in files.items():
        reader = Tar(paths, chosen) if packed else Parquet(paths, chosen, room)
        shards[part] = Shards(reader, Rows.of(reader))
    train = shards["train"]
    if len(train) < 2:
        raise BadInput(f"--dataset {name} has {len(train)} images: too few to train on some and hold out others")
    if "test" not in shards:
        return train.split(max(1, min(held_out, len(train) // 10)))
    return train, shards["test"].split(min(held_out, len(shards["test"])))[1]


def _as_stored(image: dict | bytes | None) -> dict | None:
    return {"bytes": image, "path": None} if isinstance(image, bytes) else image


class Held:
    """Blocks in memory: those used last, of at most WINDOW bytes and the largest one."""

    def __init__(self, load: Callable[[int], Any], size: np.ndarray) -> None:
        """size: (blocks,) bytes."""
        self.load, self.size, self.blocks = load, size, OrderedDict()

    def __getitem__(self, block: int) -> Any:
        if block not in self.blocks:
            room = WINDOW + int(self.size.max()) - int(self.size[block])
            while self.blocks and int(self.size[list(self.blocks)].sum()) > room:
                self.blocks.popitem(last=False)
            self.blocks[block] = self.load(block)
        self.blocks.move_to_end(block)
        return self.blocks[block]


class Parquet:
    """files: paths, or URLs of the Hub. columns: that are read. room: bytes on disk for what is fetched from the
    Hub."""

    def __init__(
        self,
        files: Sequence[str],
        columns: Sequence[str],
        room: int = 0,
        check: Callable[[str, pa.Schema, str], object] | None = None,
    ) -> None:
        """check: raises if the first column of a file (name, schema, column) does not hold what it should; default:
        images. Raises BadInput if a file cannot be read, or lacks a column."""
        self.files, self.columns, self.room, self.check = files, list(columns), room, check or _check_images
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            found = list(pool.map(self._groups, files))
        # (blocks,) int64 each
        self.file = np.repeat(np.arange(len(files)), [len(groups) for groups in found])
        self.group = np.concatenate([np.arange(len(groups)) for groups in found])
        count, self.size = np.concatenate(found).reshape(-1, 2).T
        self.first = np.concatenate([[0], count.cumsum()])
        self.held = Held(self.load, self.size)

    def __len__(self) -> int:
        return int(self.first[-1])

    @property
    def features(self) -> Features:
        from datasets import Features, Image

        with _opened(self.files[0]) as opened:
            stored = Features.from_arrow_schema(opened.schema_arrow)
        return Features({self.columns[0]: Image()} | {name: stored[name] for name in self.columns[1:]})

    def only(self, columns: Sequence[str]) -> Parquet:
        other = copy.copy(self)
        other.columns, other.held = list(columns), Held(other.load, self.size)
        return other

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        at = np.asarray(rows)
        block = np.searchsorted(self.first, at, side="right") - 1
        found: list = [None] * len(at)
        for one in dict.fromkeys(block.tolist()):  # in this order: the first may belong to a window that now ends
            table = self.held[one]
            for i in np.flatnonzero(block == one):
                row = int(at[i] - self.first[one])
                found[i] = {name: table.column(name)[row].as_py() for name in self.columns}
        return found

    def load(self, block: int) -> pa.Table:
        """The rows of a block."""
        return self._fetched(block) if self.files[0].startswith(REMOTE) else self._group(block)

    def _group(self, block: int) -> pa.Table:
        file = self.files[self.file[block]]
        try:
            with _opened(file) as opened:
                # one thread: Arrow's pool of threads does not survive the fork of a worker
                return opened.read_row_group(int(self.group[block]), columns=self.columns, use_threads=False)
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}, row group {self.group[block]}: {first_line(error)}") from error

    def _fetched(self, block: int) -> pa.Table:
        """From the Hub, once for all processes and workers of this machine."""
        import pyarrow.parquet as pq

        name = f"{self.files[self.file[block]]} {self.group[block]} {' '.join(self.columns)}"
        directory = _fetched_blocks() / hashlib.sha256(name.encode()).hexdigest()[:32]

        def fetch(directory: Path) -> None:
            table = self._group(block)
            _make_room(_fetched_blocks(), self.room - table.nbytes)
            with whole(directory) as place:
                pq.write_table(table, place / "block.parquet", compression="none")

        while True:
            once(directory, fetch)
            try:
                os.utime(directory)
                with reading(directory):
                    return pq.read_table(directory / "block.parquet", use_threads=False)
            except (BadInput, FileNotFoundError):
                if directory.exists():
                    raise
                # another worker needed the room: again

    def _groups(self, file: str) -> np.ndarray:
        """(row groups, 2) int64: rows, bytes of the columns."""
        try:
            with _opened(file) as opened:
                about, schema = opened.metadata, opened.schema_arrow
        except (OSError, ValueError) as error:
            raise _unreadable(file, error) from error
        for column in self.columns:
            if column not in schema.names:
                raise BadInput(f"{file} has no column {column}, only {', '.join(schema.names)}")
        self.check(file, schema, self.columns[0])
        paths = [about.schema.column(i).path.split(".")[0] for i in range(about.num_columns)]
        own = [i for i, path in enumerate(paths) if path in self.columns]
        groups = map(about.row_group, range(about.num_row_groups))
        found = [(g.num_rows, sum(g.column(i).total_uncompressed_size for i in own)) for g in groups]
        return np.array(found, dtype=np.int64).reshape(-1, 2)


def _check_images(file: str, schema: pa.Schema, column: str) -> None:
    import pyarrow as pa

    kind = schema.field(column).type
    inside = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (inside or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise BadInput(f"--image_column {column} holds {kind}, not images: leave --streaming out")


def names(file: str) -> list[str]:
    """The columns of a Parquet file."""
    return schema(file).names


def schema(file: str) -> pa.Schema:
    """Raises BadInput if a file cannot be read as Parquet."""
    try:
        with _opened(file) as opened:
            return opened.schema_arrow
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: str, error: Exception) -> BadInput:
    return BadInput(f"{file} could not be read as Parquet: {first_line(error)}")


def _opened(file: str) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    if not file.startswith(REMOTE):
        return pq.ParquetFile(file, pre_buffer=False)
    from huggingface_hub import HfFileSystem

    return pq.ParquetFile(HfFileSystem().open(file, "rb"), pre_buffer=True)


def _fetched_blocks() -> Path:
    return sources.home() / "fetched"


def _make_room(folder: Path, room: int) -> None:
    """Remove the blocks that were not used for the longest time, until `room` bytes hold the others."""
    found = []
    for place in folder.iterdir():
        try:
            file = (place / "block.parquet").stat()
            found.append((place.stat().st_mtime, file.st_size, place))
        except OSError:  # a lock, or one that is being written or removed
            continue
    held = sum(size for _, size, _ in found)
    for _, size, place in sorted(found):
        if held <= room:
            return
        shutil.rmtree(place, ignore_errors=True)
        held -= size


class Tar:
    """Samples of tar files, as webdataset has them: members that share a folder and the part of their name before the
    first dot. A sample without an image is no row.

    files: paths. columns: suffixes of members, without the dot, in lower case; "caption": that of the JSON member.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str]) -> None:
        """Raises BadInput if a file cannot be read."""
        self.files, self.columns, self.indexed = files, list(columns), list(columns)
        found = [_members(file, ["json" if column == "caption" else column for column in columns]) for file in files]
        count = np.array([len(each) for each in found])
        # (rows, columns, 2) int64: first byte, and how many; -1 where a sample has no such member
        self.place = np.concatenate(found).reshape(-1, len(columns), 2)
        self.first_of_file = np.concatenate([[0], count.cumsum()])
        starts = zip(self.first_of_file, count, strict=False)
        self.first = np.concatenate([*(np.arange(start, start + n, RUN) for start, n in starts), [count.sum()]])
        sizes = np.concatenate([[0], self.place[:, :, 1].clip(0).sum(1).cumsum()])
        self.size = np.diff(sizes[self.first])

    def __len__(self) -> int:
        return len(self.place)

    @property
    def features(self) -> Features:
        from datasets import Features, Image, Value

        kinds = {"cls": Value("int64")}
        return Features({c: Image() if f".{c}" in IMAGES else kinds.get(c, Value("string")) for c in self.columns})

    def only(self, columns: Sequence[str]) -> Tar:
        other = copy.copy(self)
        other.columns = list(columns)
        return other

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        found: list = []
        for row in rows:
            file = self.files[int(np.searchsorted(self.first_of_file, row, side="right")) - 1]
            with open(file, "rb") as opened:
                found.append({column: self._value(opened, file, row, column) for column in self.columns})
        return found

    def _value(self, opened, file: str, row: int, column: str) -> Any:
        start, length = map(int, self.place[row, self.indexed.index(column)])
        if start < 0:
            return None
        opened.seek(start)
        if f".{column}" in IMAGES:
            return {"bytes": opened.read(length), "path": f"{file}, byte {start:,}"}
        text = opened.read(min(length, LONGEST_TEXT))
        try:
            if column == "caption":
                return caption_of(bounded_json.loads(text.decode()))
            return int(text) if column == "cls" else text.decode()
        except ValueError:  # no JSON, no number or no UTF-8: as if the sample had no such member
            return None


def _kinds(files: Sequence[str]) -> list[str]:
    """The columns of tar files: suffixes of their first members, and "caption" where only JSON members have one."""
    found, seen = set(), 0
    for file in files:
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    found.add(_kind(member.name))
                    seen += 1
                    if seen >= FIRST:
                        break
        except (OSError, tarfile.TarError) as error:
            raise BadInput(f"{file} could not be read as a tar file: {first_line(error)}") from error
        if seen >= FIRST:
            break
    known = sorted(kind for kind in found if f".{kind}" in IMAGES or kind in (*TEXTS, "cls"))
    return [*known, "caption"] if "json" in found and not found & set(TEXTS) else known


def _kind(name: str) -> str:
    """The suffix of a member as webdataset has it, all behind the first dot, in lower case; "" of a hidden one."""
    stem, _, kind = name.rpartition("/")[2].partition(".")
    return kind.lower() if stem else ""


def _members(file: str, kinds: Sequence[str]) -> np.ndarray:
    """(samples, 2 * kinds) int64: first byte of each member of that kind, and how many; -1 where there is none. Samples
    without the first kind are left out. Read from the headers once, then from a file."""
    about = os.stat(file)
    state = f"{Path(file).resolve()} {about.st_size} {about.st_mtime_ns} {' '.join(kinds)}"

    def write(directory: Path) -> None:
        found: dict[str, np.ndarray] = {}
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    tar.members = []  # else it keeps them all
                    if not member.isfile() or (kind := _kind(member.name)) not in kinds:
                        continue
                    if member.size > MAX_MEMBER or member.issparse():
                        raise BadInput(f"{file}: {member.name} is sparse or has over {MAX_MEMBER:,} bytes; remove it")
                    folder, _, name = member.name.rpartition("/")
                    sample = found.setdefault(f"{folder}/{name.partition('.')[0]}", np.full((len(kinds), 2), -1))
                    sample[kinds.index(kind)] = member.offset_data, member.size
        except (OSError, tarfile.TarError) as error:
            raise BadInput(f"{file} could not be read as a tar file: {first_line(error)}") from error
        places = np.array([sample for sample in found.values() if sample[0, 0] >= 0], dtype=np.int64)
        with whole(directory) as place:
            np.save(place / "members.npy", places.reshape(-1, 2 * len(kinds)))

    directory = once(sources.home() / "indexed" / hashlib.sha256(state.encode()).hexdigest()[:32], write)
    with reading(directory):
        return np.load(directory / "members.npy")
