"""Images decoded each time they are asked for, by the data workers: where the decoded ones do not fit on the disk."""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mmssl.data import columns
from mmssl.data.images import decoding
from mmssl.data.images.crops import Crops
from mmssl.data.images.decoded import try_decode
from mmssl.data.images.decoding import is_deep, undecoded
from mmssl.data.images.views import Views
from mmssl.errors import BadInput
from mmssl.plain_text import one_line

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from mmssl.data.shards import Reader
    from mmssl.method import Method

logger = logging.getLogger(__name__)

DECODED, STORED = CROP_FROM = ("decoded", "stored")  # which images crops are cut from, see the flag --crop_from
NAMED = 3  # corrupt images that each worker names
MANY = 500  # images; beyond them, more than MAX_UNUSABLE corrupt ones end the run
NEXT = 100  # images that are tried in place of a corrupt one
PLACES = 1025  # the training process and its workers
TRIED, TRIED_FOR = 32, 1.0  # images, seconds: to measure the speed of a core


class OnDemand:
    """What `Decoded.pixels` is: `images[rows]` is (n, 3, height, width) uint8 for n rows, here decoded now.

    What is wrong with an image is known only when it is read. In its place comes the next row that can be used, always
    the same; it is counted, and the first ones are named. If, after MANY images, more than a tenth are corrupt,
    BadInput ends the run.
    """

    def __init__(
        self,
        reader: Reader,
        rows: int,
        processor,
        what: str,
        left_out: frozenset[bytes] = frozenset(),
        crop_from: str = DECODED,
    ) -> None:
        """rows: of the reader. left_out: SHA-256 of the bytes of images that are treated as if they were not there.
        crop_from: DECODED or STORED, see CROP_FROM."""
        self.reader, self.processor, self.what, self.left_out = reader, processor, what, left_out
        self.crop_from, self.crops = crop_from, None
        self.column, self.scaled = reader.columns[0], set()
        self.shape = (rows, 3, *decoding.shape(processor))
        # shared memory, a line for each process: a worker does not outlive its epoch
        self.counts = torch.zeros(PLACES, 2, dtype=torch.int64).share_memory_()  # images decoded, corrupt ones
        self.named = torch.full((PLACES, NAMED), -1, dtype=torch.int64).share_memory_()
        self.said = 0

    def __getitem__(self, rows: Tensor) -> Tensor:
        return _stacked(self.usable(rows.tolist())) if len(rows) else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def made_for(self, method: Method) -> None:
        """If crops are cut from stored images: they are those of the method's views from now on. Raises BadInput if it
        has none."""
        if self.crop_from == STORED:
            if not isinstance(views := getattr(method, "views", None), Views):
                raise BadInput(f"--crop_from {STORED}: {type(method).__name__} has no views of its own; leave it out")
            self.crops = Crops(views, self.processor)

    def shown(self, rows: Tensor, key: Tensor) -> Tensor:
        """What `Views` take for so many rows: the images, or crops of the stored ones."""
        return self[rows] if self.crops is None else _stacked(self.usable(rows.tolist(), key))

    def usable(self, rows: Sequence[int], key: Tensor | None = None) -> list[tuple[dict[str, Any], np.ndarray]]:
        """(what the reader gives, (3, height, width) uint8) of each row, or of the one that comes in its place. With
        `key`, (rows,) int64, what `Views` take in the place of the image."""
        keys = [None] * len(rows) if key is None or self.crops is None else key
        return [self._usable(*given) for given in zip(rows, self.reader.read(rows), keys, strict=True)]

    def _usable(self, row: int, stored: dict[str, Any], key: Tensor | None) -> tuple[dict[str, Any], np.ndarray]:
        reason = "their images are also among those held out"
        for _ in range(NEXT):
            if not self._is_left_out(stored[self.column]):
                result = self.decoded(row, stored, key)
                self._count(row, result)
                if not isinstance(result, str):
                    return stored, result
                reason = result
            row = (row + 1) % self.shape[0]
            (stored,) = self.reader.read([row])
        raise BadInput(
            f"{NEXT} {self.what} in sequence, up to row {row:,}, cannot be used ({reason}): repair or remove them"
        )

    def decoded(self, row: int, stored: dict[str, Any], key: Tensor | None) -> np.ndarray | str:
        """(3, height, width) uint8, with `key` its crops, or why the row cannot be used."""

        def decode(image: Image.Image) -> np.ndarray:
            if key is None:
                return decoding.decode(image, self.processor)
            return self.crops(decoding.as_rgb(image), key)

        result, mode = try_decode(stored[self.column], decode)
        if is_deep(mode) and mode not in self.scaled:
            self.scaled.add(mode)
            logger.warning("%s of mode %s, row %d first, are scaled to 8 bits", self.what, mode, row)
        return result

    def _is_left_out(self, image) -> bool:
        if not self.left_out:
            return False
        content = image.get("bytes") if isinstance(image, dict) else image
        return content is not None and hashlib.sha256(content).digest() in self.left_out

    def _count(self, row: int, result: np.ndarray | str) -> None:
        place = (worker.id + 1) if (worker := get_worker_info()) else 0
        counts, named = self.counts[place], self.named[place]
        counts[0] += 1
        if not isinstance(result, str):
            return
        if (unused := (named < 0).nonzero()).numel() and not (self.named == row).any():
            named[unused[0, 0]] = row
            logger.warning("left out of the %s: row %d: %s", self.what, row, one_line(result))
        counts[1] += 1
        read, corrupt = self.counts.sum(0).tolist()
        if read >= MANY and corrupt > columns.MAX_UNUSABLE * read:
            raise BadInput(
                f"{corrupt:,} of {read:,} {self.what} cannot be used, row {row:,} last ({one_line(result)}): too many "
                "to leave out; repair or remove them"
            )

    def report(self) -> None:
        """Say how many were corrupt so far, if there are more than were said."""
        read, corrupt = self.counts.sum(0).tolist()
        if corrupt > self.said:
            logger.warning("%s of %s %s could not be used, so far", f"{corrupt:,}", f"{read:,}", self.what)
            self.said = corrupt

    def speed(self, rows: Tensor, workers: int) -> str:
        """A sentence: by what they are decoded, and how many of `rows` one core decodes in a second."""
        by = f"by {workers} workers (--dataloader_num_workers)"
        by = by if workers else "by the training process (--dataloader_num_workers 0)"
        return f"{self.what}: decoded during training {by}, {self.per_second(rows):,.0f} a second on one core"

    def per_second(self, rows: Tensor) -> float:
        """Images that one core reads and decodes in a second, measured on up to TRIED of `rows`."""
        some = rows[:TRIED]
        self[some[:1]]  # opens files
        count, started = 0, time.perf_counter()
        for row in some.split(1):
            self[row]
            count += 1
            if time.perf_counter() - started > TRIED_FOR:
                break
        seconds = time.perf_counter() - started
        self.counts.zero_()  # they are read again by the training
        return count / seconds


def _stacked(found: list[tuple[dict[str, Any], np.ndarray]]) -> Tensor:
    return torch.from_numpy(np.stack([pixels for _, pixels in found]))


def digests(rows: datasets.Dataset, column: str) -> frozenset[bytes]:
    """SHA-256 of the bytes of the images."""
    images = (row[column] for row in Table(rows, [column]).read(range(len(rows))))
    return frozenset(hashlib.sha256(image["bytes"]).digest() for image in images if image and image["bytes"])


class Table:
    """The rows of a data set that is mapped into memory, as a Reader gives them."""

    def __init__(self, rows: datasets.Dataset, columns: Sequence[str]) -> None:
        """columns: that are read, that of images first."""
        self.columns = list(columns)
        self.rows = undecoded(rows, self.columns[0]).select_columns(self.columns).with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, columns: Sequence[str]) -> Table:
        other = copy.copy(self)
        other.columns, other.rows = list(columns), self.rows.select_columns(list(columns))
        return other

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return self.rows[list(rows)].to_pylist()
