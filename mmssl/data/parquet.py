"""Parquet files, here or on the Hub, read where they lie: a Reader, see data.shards, whose blocks are row groups."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from mmssl.data import sources
from mmssl.data.atomic import PARTIAL, once, reading, whole
from mmssl.data.windows import Held
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

AT_A_TIME = 16  # files whose number of rows is read at the same time
REMOTE = "hf://"
TRIES = 100  # to read what others may remove to make room


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
        except _failures() as error:
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

        for attempt in range(TRIES):
            once(directory, fetch)
            try:
                os.utime(directory)
                with reading(directory):
                    return pq.read_table(directory / "block.parquet", use_threads=False)
            except (BadInput, FileNotFoundError):
                if (directory / "block.parquet").exists() or attempt == TRIES - 1:
                    raise
                time.sleep(0.01)  # another worker needed the room: again

    def _groups(self, file: str) -> np.ndarray:
        """(row groups, 2) int64: rows, bytes of the columns."""
        try:
            with _opened(file) as opened:
                about, schema = opened.metadata, opened.schema_arrow
        except _failures() as error:
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


def schema(file: str) -> pa.Schema:
    """Raises BadInput if a file cannot be read as Parquet."""
    try:
        with _opened(file) as opened:
            return opened.schema_arrow
    except _failures() as error:
        raise _unreadable(file, error) from error


def _failures() -> tuple[type[Exception], ...]:
    """What Arrow raises, and the Hub's client, which is imported only where there is something to fetch."""
    network = [sys.modules["httpx"].HTTPError] if "httpx" in sys.modules else []
    return OSError, ValueError, *network


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
        if place.suffix == PARTIAL:
            continue
        try:
            file = (place / "block.parquet").stat()
            found.append((place.stat().st_mtime, file.st_size, place))
        except OSError:  # a lock, or one that is being written or removed
            continue
    held = sum(size for _, size, _ in found)
    for _, size, place in sorted(found):
        if held <= room:
            return
        with suppress(Timeout), FileLock(f"{place}.lock", timeout=0):  # not one that another worker just fetched
            shutil.rmtree(place, ignore_errors=True)
            held -= size
