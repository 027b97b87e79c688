"""Rows of Parquet and tar files, read where they lie: nothing is converted, and only what is asked for is fetched.

Rows are numbered in the order of the files. Rows that lie together (a row group of a Parquet file, a run of members of
a tar file) are a block. How many rows each block holds is known before anything else is read, so that the place of a
row is arithmetic: an epoch can begin anywhere, and any process and any worker can read any batch.

An epoch's order is a function of its seed: all blocks in a new order, and the rows of as many blocks as windows.WINDOW
bytes hold mixed with each other. A reader holds so much in memory, however large the data; several processes read
different blocks where their shares of a batch are whole lanes (see Order).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmssl.data import parquet, readers, sources, tar, windows
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from datasets import Dataset, Features

LANES = 64  # at most; their number is also that of the processes that can each read blocks of their own
HELD_OUT_BLOCKS = 16  # that held-out rows are taken from, so that sorted data is held out evenly


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

    def block(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(first position, number of positions) of the block of each."""
        block = np.searchsorted(self.begin, positions.numpy(), side="right") - 1
        return torch.from_numpy(self.begin[block]), torch.from_numpy(self.count[block])

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
    """All positions of `rows`, each once, mixed.

    The blocks, in a new order, are cut into lanes of equal length, side by side: place p is in lane p % lanes. Each
    lane is mixed on its own, in windows of some blocks. The windows that are open at a time, one in each lane, take at
    most windows.WINDOW bytes.
    """

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows, self.seed, n = rows, seed, len(rows)
        self.blocks = np.random.default_rng(seed).permutation(len(rows.count))
        size, count = rows.size[self.blocks], rows.count[self.blocks]
        largest = max(1, int(size.max(initial=1)))
        lanes = max(1, min(LANES, windows.WINDOW // (2 * largest), n))
        self.lanes = 1 << (lanes.bit_length() - 1)  # a power of two, as batches and numbers of processes mostly are
        # a window begins with a block that begins in the next `step` bytes, so it takes less than one block more
        step = windows.WINDOW // self.lanes - (largest if self.lanes > 1 else 0)
        # places of the blocks' rows if they followed each other; of those the lanes and the windows begin with
        self.first = np.concatenate([[0], count.cumsum()])
        self.begin = np.concatenate([[0], ((n - 1 - np.arange(self.lanes)) // self.lanes + 1).cumsum()])
        window = np.flatnonzero(np.diff((size.cumsum() - size) // step, prepend=-1))
        self.edges = np.unique(np.concatenate([self.begin, self.first[window]]))
        self.open: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: slice) -> Tensor:
        return self._at(np.arange(*places.indices(len(self))))

    def share(self, places: slice, part: int, parts: int) -> Tensor:
        """One of `parts` equal shares of order[places]: the rows of as few lanes as have them, lane after lane. So each
        process reads blocks of its own."""
        found = np.arange(*places.indices(len(self)))
        found = found[np.argsort(found % self.lanes, kind="stable")]
        return self._at(np.array_split(found, parts)[part])

    def _at(self, places: np.ndarray) -> Tensor:
        rows = self.begin[places % self.lanes] + places // self.lanes
        window = np.searchsorted(self.edges, rows, side="right") - 1
        found = np.empty(len(rows), np.int64)
        for each in np.unique(window).tolist():
            inside = window == each
            found[inside] = self._mixed(each)[rows[inside] - self.edges[each]]
        return torch.from_numpy(found)

    def _mixed(self, window: int) -> np.ndarray:
        """The positions of a window."""
        if window not in self.open:
            while len(self.open) >= 2 * self.lanes:
                del self.open[next(iter(self.open))]
            rows = np.arange(self.edges[window], self.edges[window + 1])
            block = np.searchsorted(self.first, rows, side="right") - 1
            positions = self.rows.begin[self.blocks[block]] + rows - self.first[block]
            self.open[window] = np.random.default_rng([self.seed, window]).permutation(positions)
        return self.open[window]


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
    packed = not one.startswith(parquet.REMOTE) and readers.reader(Path(one)) == "webdataset"
    chosen = choose(tar.kinds(files["train"]) if packed else parquet.schema(one).names)
    shards = {}
    for part, paths in files.items():
        reader = tar.Tar(paths, chosen) if packed else parquet.Parquet(paths, chosen, room)
        shards[part] = Shards(reader, Rows.of(reader))
    train = shards["train"]
    if len(train) < 2:
        raise BadInput(f"--dataset {name} has {len(train)} images: too few to train on some and hold out others")
    if "test" not in shards:
        return train.split(max(1, min(held_out, len(train) // 10)))
    return train, shards["test"].split(min(held_out, len(shards["test"])))[1]


def _as_stored(image: dict | bytes | None) -> dict | None:
    return {"bytes": image, "path": None} if isinstance(image, bytes) else image
