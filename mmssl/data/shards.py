"""Images in Parquet and tar files, read where they lie: nothing is converted, and only what is asked for is fetched.

Rows are numbered in the order of the files. Rows that lie together (a row group of a Parquet file, a run of members of
a tar file) are a block. How many rows each block holds is known before anything else is read, so that the place of a
row is arithmetic: an epoch can begin anywhere, and any process and any worker can read any batch.

An epoch's order is a function of its seed: all blocks in a new order, and within a window, as many blocks as WINDOW
bytes hold, all rows in a new order. A reader holds one window in memory, however large the data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from mmssl.data import columns, readers, sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.file_tables import IMAGES
from mmssl.data.webdataset import FIRST, MAX_MEMBER
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

WINDOW = 1 << 28  # bytes of stored images that are mixed with each other
RUN = 128  # images in a block of a tar file
HELD_OUT_BLOCKS = 16  # that held-out images are taken from, so that sorted data is held out evenly
AT_A_TIME = 16  # Parquet files whose number of rows is read at the same time
REMOTE = "hf://"


class Reader(Protocol):
    """Random access to the images of some files.

    first: (blocks + 1,) int64: block b holds rows first[b] to first[b + 1]. size: (blocks,) bytes.
    """

    first: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        """Rows."""

    def read(self, rows: Sequence[int]) -> list[dict | bytes | None]:
        """What `decoding.opened` takes, for each row."""


class Shards:
    """A part of the rows of a reader. Position i is row `rows[i]` of the source; neighbours lie in the same block."""

    def __init__(self, reader: Reader, rows: Rows) -> None:
        self.reader, self.rows = reader, rows

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, count: int) -> tuple[Shards, Shards]:
        """(the rest, `count` rows: the first ones of some blocks)."""
        return tuple(Shards(self.reader, rows) for rows in self.rows.split(count))


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


def find(name: str, column: str | None, held_out: int, room: int) -> tuple[Shards, Shards, str] | None:
    """(training, held out, column); None if the data does not lie in Parquet or tar files.

    column: of images; None: the first with a usual name. held_out: rows held out, of the test data if there is some,
    else of the training data (at most a tenth). room: bytes on disk for what is fetched from the Hub.
    """
    if (files := sources.shards(name)) is None:
        return None
    one = files["train"][0]
    packed = not one.startswith(REMOTE) and readers.reader(Path(one)) == "webdataset"
    reader = _tar if packed else partial(_parquet, room=room)
    train, column = reader(f"--dataset {name}", files["train"], column)
    if len(train) < 2:
        raise BadInput(f"--dataset {name} has {len(train)} images: too few to train on some and hold out others")
    if "test" not in files:
        return *train.split(max(1, min(held_out, len(train) // 10))), column
    test, _ = reader(f"--dataset {name}, its test data", files["test"], column)
    return train, test.split(min(held_out, len(test)))[1], column


class Parquet:
    """files: paths, or URLs of the Hub. column: of images. room: bytes on disk for what is fetched from the Hub."""

    def __init__(self, files: Sequence[str], column: str, room: int = 0) -> None:
        """Raises BadInput if a file cannot be read, or has no such column of images."""
        self.files, self.column, self.room = files, column, room
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            found = list(pool.map(self._groups, files))
        # (blocks,) int64 each
        self.file = np.repeat(np.arange(len(files)), [len(groups) for groups in found])
        self.group = np.concatenate([np.arange(len(groups)) for groups in found])
        count, self.size = np.concatenate(found).reshape(-1, 2).T
        self.first = np.concatenate([[0], count.cumsum()])
        self.held: OrderedDict[int, pa.ChunkedArray] = OrderedDict()  # the blocks in memory, the last used last

    def __len__(self) -> int:
        return int(self.first[-1])

    def read(self, rows: Sequence[int]) -> list[dict | bytes | None]:
        at = np.asarray(rows)
        block = np.searchsorted(self.first, at, side="right") - 1
        found: list = [None] * len(at)
        for one in dict.fromkeys(block.tolist()):  # in this order: the first may belong to a window that now ends
            images = self._block(one)
            for i in np.flatnonzero(block == one):
                found[i] = images[int(at[i] - self.first[one])].as_py()
        return found

    def _block(self, block: int) -> pa.ChunkedArray:
        if block not in self.held:
            room = WINDOW + int(self.size.max()) - int(self.size[block])
            while self.held and int(self.size[list(self.held)].sum()) > room:
                self.held.popitem(last=False)
            self.held[block] = self._fetched(block) if self.files[0].startswith(REMOTE) else self._group(block)
        self.held.move_to_end(block)
        return self.held[block]

    def _group(self, block: int) -> pa.ChunkedArray:
        file = self.files[self.file[block]]
        try:
            with _opened(file) as opened:
                # one thread: Arrow's pool of threads does not survive the fork of a worker
                table = opened.read_row_group(int(self.group[block]), columns=[self.column], use_threads=False)
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}, row group {self.group[block]}: {first_line(error)}") from error
        return table.column(self.column)

    def _fetched(self, block: int) -> pa.ChunkedArray:
        """From the Hub, once for all processes and workers of this machine."""
        import pyarrow.parquet as pq

        name = f"{self.files[self.file[block]]} {self.group[block]} {self.column}"
        directory = _fetched_blocks() / hashlib.sha256(name.encode()).hexdigest()[:32]

        def fetch(directory: Path) -> None:
            import pyarrow as pa

            table = pa.table({self.column: self._group(block)})
            _make_room(_fetched_blocks(), self.room - table.nbytes)
            with whole(directory) as place:
                pq.write_table(table, place / "block.parquet", compression="none")

        while True:
            once(directory, fetch)
            try:
                os.utime(directory)
                with reading(directory):
                    return pq.read_table(directory / "block.parquet", use_threads=False).column(self.column)
            except (BadInput, FileNotFoundError):
                if directory.exists():
                    raise
                # another worker needed the room: again

    def _groups(self, file: str) -> np.ndarray:
        """(row groups, 2) int64: rows, bytes of the column."""
        import pyarrow as pa

        try:
            with _opened(file) as opened:
                about, schema = opened.metadata, opened.schema_arrow
        except (OSError, ValueError) as error:
            raise BadInput(f"{file} could not be read as Parquet: {first_line(error)}") from error
        if self.column not in schema.names:
            raise BadInput(f"{file} has no column {self.column}, only {', '.join(schema.names)}")
        kind = schema.field(self.column).type
        inside = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (inside or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise BadInput(f"--image_column {self.column} holds {kind}, not images: leave --streaming out")
        own = [i for i in range(about.num_columns) if about.schema.column(i).path.split(".")[0] == self.column]
        groups = map(about.row_group, range(about.num_row_groups))
        found = [(g.num_rows, sum(g.column(i).total_uncompressed_size for i in own)) for g in groups]
        return np.array(found, dtype=np.int64).reshape(-1, 2)


def _parquet(source: str, files: list[str], column: str | None, room: int) -> tuple[Shards, str]:
    try:
        with _opened(files[0]) as opened:
            names = opened.schema_arrow.names
    except (OSError, ValueError) as error:
        raise BadInput(f"{files[0]} could not be read as Parquet: {first_line(error)}") from error
    column = columns.find(names, column, columns.IMAGE, "image", f"{source}: ")
    reader = Parquet(files, column, room)
    return Shards(reader, Rows.of(reader)), column


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
    """files: paths. kind: suffix of the members that are read, without a dot, in lower case."""

    def __init__(self, files: Sequence[str], kind: str) -> None:
        """Raises BadInput if a file cannot be read."""
        self.files, found = files, [_members(file, kind) for file in files]
        count = np.array([len(each) for each in found])
        self.place = np.concatenate(found).reshape(-1, 2)  # (rows, 2) int64: first byte, and how many
        self.first_of_file = np.concatenate([[0], count.cumsum()])
        starts = zip(self.first_of_file, count, strict=False)
        self.first = np.concatenate([*(np.arange(start, start + n, RUN) for start, n in starts), [count.sum()]])
        sizes = np.concatenate([[0], self.place[:, 1].cumsum()])
        self.size = np.diff(sizes[self.first])

    def __len__(self) -> int:
        return len(self.place)

    def read(self, rows: Sequence[int]) -> list[dict | bytes | None]:
        found: list = []
        for row in rows:
            file = self.files[int(np.searchsorted(self.first_of_file, row, side="right")) - 1]
            start, length = map(int, self.place[row])
            with open(file, "rb") as opened:
                opened.seek(start)
                found.append({"bytes": opened.read(length), "path": f"{file}, byte {start:,}"})
        return found


def _tar(source: str, files: list[str], column: str | None) -> tuple[Shards, str]:
    names, seen = set(), 0
    for file in files:
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    names.add(_kind(member.name))
                    seen += 1
                    if seen >= FIRST:
                        break
        except (OSError, tarfile.TarError) as error:
            raise BadInput(f"{file} could not be read as a tar file: {first_line(error)}") from error
        if seen >= FIRST:
            break
    names = sorted(name for name in names if f".{name}" in IMAGES)
    column = columns.find(names, column, columns.IMAGE, "image", f"{source}: ")
    reader = Tar(files, column)
    return Shards(reader, Rows.of(reader)), column


def _kind(name: str) -> str:
    """The suffix of a member as webdataset has it, all behind the first dot, in lower case; "" of a hidden one."""
    stem, _, kind = name.rpartition("/")[2].partition(".")
    return kind.lower() if stem else ""


def _members(file: str, kind: str) -> np.ndarray:
    """(members of that kind, 2) int64: first byte, and how many. Read from the headers once, then from a file."""
    about = os.stat(file)
    state = f"{Path(file).resolve()} {about.st_size} {about.st_mtime_ns} {kind}"

    def write(directory: Path) -> None:
        found = []
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    tar.members = []  # else it keeps them all
                    if not member.isfile() or _kind(member.name) != kind:
                        continue
                    if member.size > MAX_MEMBER or member.issparse():
                        raise BadInput(f"{file}: {member.name} is sparse or has over {MAX_MEMBER:,} bytes; remove it")
                    found.append((member.offset_data, member.size))
        except (OSError, tarfile.TarError) as error:
            raise BadInput(f"{file} could not be read as a tar file: {first_line(error)}") from error
        with whole(directory) as place:
            np.save(place / "members.npy", np.array(found, dtype=np.int64).reshape(-1, 2))

    directory = once(sources.home() / "indexed" / hashlib.sha256(state.encode()).hexdigest()[:32], write)
    with reading(directory):
        return np.load(directory / "members.npy")
