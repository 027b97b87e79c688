"""The frames of all clips of a data set: decoded once into one array on disk, or decoded again whenever they are read.

The array on disk is shared by all processes of a machine and reused by the next run. Its name is a digest of everything
it depends on, so it is never out of date. It may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmssl import bounded_json, progress
from mmssl.data import columns, sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.images import decoding as images
from mmssl.data.video import decoding
from mmssl.device import cores
from mmssl.distributed import rank
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

FORMAT = 1  # of the files on disk
ALONE = 50  # clips; fewer are decoded sooner than workers would have started
PIXELS, MOTION, ROWS = "frames.uint8", "motion.npy", "rows.json"


class Rows(Dataset):
    """The videos of a data set, one in each row, as `decoding.read` takes them.

    rate: column of the rates in Hz, for lists of images, which have none.
    """

    def __init__(self, data: datasets.Dataset, column: str, rate: str | None = None) -> None:
        """Raises BadInput if the column cannot hold videos."""
        self.data, self.column, self.rate = undecoded(data, column).with_format("arrow"), column, rate

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[decoding.Stored | None, float]:
        """(what is stored; its rate in Hz, or 0)."""
        table = self.data[row : row + 1] if isinstance(row, int) else self.data[int(row)]
        rate = table.column(self.rate)[0].as_py() if self.rate else None
        return table.column(self.column)[0].as_py(), float(rate or 0)

    def name(self, row: int) -> str:
        """The path of a file, or ""."""
        stored, _ = self[row]
        return stored if isinstance(stored, str) else (stored.get("path") or "") if isinstance(stored, dict) else ""

    def digest(self, *settings) -> str:
        """Of the rows, the files that they point to, and the settings."""
        digest = hashlib.sha256(f"{self.data._fingerprint} {self.column} {self.rate} {settings} {FORMAT}".encode())
        for row in range(len(self)):
            if (name := self.name(row)) and os.path.exists(name):
                digest.update(f"{name} {os.stat(name).st_size} {os.stat(name).st_mtime_ns}".encode())
        return digest.hexdigest()[:32]


def undecoded(data: datasets.Dataset, column: str) -> datasets.Dataset:
    """The same rows, with what is stored in the column: paths, bytes, {bytes, path}, or lists of images."""
    import datasets

    feature = data.features[column]
    inner = getattr(feature, "feature", None)
    if isinstance(feature, datasets.Video):
        return data.cast_column(column, datasets.Video(decode=False))
    if isinstance(feature, datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    if isinstance(inner, datasets.Image):
        return data.cast_column(column, datasets.List(datasets.Image(decode=False)))
    plain = inner if inner is not None else feature
    holds = isinstance(plain, datasets.Value) and plain.dtype in ("string", "binary", "large_string", "large_binary")
    struct = feature if isinstance(feature, dict) else None
    if not holds and not (struct and {"bytes", "path"} <= struct.keys()):
        raise BadInput(f"--video_column {column} holds {feature}, not videos, paths or lists of images")
    return data


class Frames(Protocol):
    """
    lengths: (rows,) int64, frames of each row; 0 where it cannot be used.
    broken:  row -> what is wrong with it.
    size:    (height, width).
    """

    lengths: Tensor
    broken: dict[int, str]
    size: tuple[int, int]

    def read(self, row: int, numbers: Tensor) -> Tensor:
        """(frames, 3, height, width) uint8: those with the numbers, which increase."""


class Kept:
    """Decoded once, on disk."""

    def __init__(self, rows: Rows, processor, fps: float, disk_gb: float, what: str = "clips") -> None:
        """disk_gb: the largest size of the array, in GB. Raises BadInput if it would be larger, or if the disk is too
        small."""
        self.size, self.what = images.shape(processor), what

        def decode(directory: Path) -> None:
            with whole(directory) as place:
                _decode(rows, processor, fps, disk_gb, place, what)

        name = rows.digest(processor.to_json_string(), fps)
        directory = once(sources.home() / "decoded" / name, decode)
        with reading(directory):
            found = bounded_json.read(directory / ROWS)
            self.lengths = torch.tensor(found["lengths"], dtype=torch.int64)
            self.broken = {int(row): why for row, why in found["broken"].items()}
            notes = {str(note): list(of) for note, of in found["notes"].items()}
            total, shape = int(self.lengths.sum()), (3, *self.size)
            if (directory / PIXELS).stat().st_size != total * int(np.prod(shape)):
                raise ValueError(f"{PIXELS} does not hold {total:,} frames of {shape}")
            # "c" is copy-on-write: torch needs writable memory, and a write must not reach the file
            stored = np.memmap(directory / PIXELS, np.uint8, mode="c", shape=(total, *shape)) if total else None
            self.pixels = torch.from_numpy(stored) if total else torch.empty(0, *shape, dtype=torch.uint8)
            self.changes = torch.from_numpy(np.load(directory / MOTION))
        self.starts = self.lengths.cumsum(0) - self.lengths
        say_notes(notes, len(rows), what)

    def read(self, row: int, numbers: Tensor) -> Tensor:
        return self.pixels[self.starts[row] + numbers]

    def motion(self, row: int) -> Tensor:
        """(frames,) fp32: the mean change of each frame from the one before, of 255; that of the first is 0."""
        start = int(self.starts[row])
        return self.changes[start : start + int(self.lengths[row])]


class Streamed:
    """Decoded again whenever they are read: for videos that do not fit on the disk as frames."""

    def __init__(self, rows: Rows, processor, fps: float, what: str = "clips") -> None:
        self.rows, self.processor, self.fps, self.size = rows, processor, fps, images.shape(processor)
        lengths, self.broken = [], {}
        for row in progress.bar(
            iterable=range(len(rows)), desc=f"looking at {what}", unit="clip", disable=len(rows) < ALONE
        ):
            try:
                stored, rate = rows[row]
                lengths.append(decoding.length(stored or {}, fps, rate))
            except Exception as error:  # decoders raise many kinds on a corrupt file
                self.broken[row] = _named(rows.name(row), error)
                lengths.append(0)
        self.lengths = torch.tensor(lengths)

    def read(self, row: int, numbers: Tensor) -> Tensor:
        stored, rate = self.rows[row]
        first, count = int(numbers[0]), int(numbers[-1] - numbers[0]) + 1
        try:
            video = decoding.read(stored, self.processor, self.fps, rate, first, count)
        except Exception as error:
            raise BadInput(f"row {row}: {_named(self.rows.name(row), error)}; remove it") from error
        # what a damaged file lacks at its end repeats its last frame
        return torch.from_numpy(video.frames)[(numbers - first).clamp(max=len(video.frames) - 1)]


def _named(name: str, error: Exception) -> str:
    return f"{name} {'' if isinstance(error, BadInput) else f'{type(error).__name__}: '}{first_line(error)}".strip()


def say_notes(notes: dict[str, list[str]], total: int, what: str) -> None:
    """What was found and dealt with, counted, with the first few rows named."""
    if rank() == 0:
        for note, named in notes.items():
            logger.warning("%s of %s %s: %s (%s)", f"{len(named):,}", f"{total:,}", what, note, columns.named(named))


class _Decoder(Dataset):
    """Item i is (the frames of row i or None, what is wrong or "", notes)."""

    def __init__(self, rows: Rows, processor, fps: float) -> None:
        self.rows, self.processor, self.fps = rows, processor, fps

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[np.ndarray | None, str, list[str]]:
        try:
            stored, rate = self.rows[row]
            video = decoding.read(stored or {}, self.processor, self.fps, rate)
        except Exception as error:  # decoders raise many kinds on a corrupt file
            return None, _named(self.rows.name(row), error), []
        return video.frames, "", video.notes


def _decode(rows: Rows, processor, fps: float, disk_gb: float, directory: Path, what: str) -> None:
    lengths, broken, notes, motion = [], {}, defaultdict(list), [np.zeros(0, np.float32)]
    free, written = shutil.disk_usage(directory).free, 0
    workers = 0 if len(rows) < ALONE else cores()
    decoded = DataLoader(_Decoder(rows, processor, fps), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    with (
        open(directory / PIXELS, "wb") as file,
        progress.bar(total=len(rows), desc=f"decoding {what}", unit="clip", disable=not workers) as bar,
    ):
        for row, (frames, wrong, found) in enumerate(decoded):
            bar.update(1)
            lengths.append(0 if frames is None else len(frames))
            if frames is None:
                broken[row] = wrong
                continue
            written += frames.nbytes
            expected = written / (row + 1) * len(rows) / 1e9
            if written > 1e9 * disk_gb or written > 0.95 * free:
                room = f"--disk_gb {disk_gb:g}" if written > 1e9 * disk_gb else f"the {free / 1e9:.1f} GB that are free"
                raise BadInput(
                    f"{len(rows):,} {what} take about {expected:.1f} GB as frames, more than {room}: raise it, lower "
                    "--image_size or --fps, or decode them again in each epoch with --streaming"
                )
            file.write(frames.tobytes())
            motion.append(_motion(frames))
            for note in found:
                notes[note].append(f"row {row}: {rows.name(row)}" if rows.name(row) else f"row {row}")
    if len(broken) == len(rows):  # raises: what is wrong with all of them may be mended, so it is not kept
        wrong = [f"row {row}: {why}" for row, why in broken.items()]
        columns.unusable({f"{what} that cannot be decoded": wrong}, len(rows))
    np.save(directory / MOTION, np.concatenate(motion))
    (directory / ROWS).write_text(json.dumps({"lengths": lengths, "broken": broken, "notes": notes}))


def _motion(frames: np.ndarray) -> np.ndarray:
    """(frames,) fp32, as in Kept.motion."""
    changes = [np.abs(a.astype(np.int16) - b).mean() for a, b in zip(frames[1:], frames[:-1], strict=True)]
    return np.array([0.0, *changes], dtype=np.float32)


def _as_it_is(item):
    return item
