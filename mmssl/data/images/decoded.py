"""All images of a data set, decoded once into one memory-mapped array on disk.

The array is shared by all processes of a machine and reused by the next run. Its name is a digest of everything it
depends on (the data, the files that it points to, the image processor), so it is never out of date. It may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmssl import bounded_json, progress
from mmssl.data import columns, sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.images import decoding
from mmssl.data.images.decoding import undecoded
from mmssl.device import cores
from mmssl.distributed import rank
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets
    from PIL import Image


logger = logging.getLogger(__name__)

FORMAT = 2  # of the files on disk
CHUNK = 64  # images that a worker decodes at a time
ALONE = 2000  # images; fewer are decoded sooner than workers would have started


class Decoded:
    """
    pixels:     (rows, 3, height, width) uint8, zeros for a corrupt row.
    broken:     row -> what is wrong with it.
    one_colour: rows that show nothing.
    scaled:     mode -> rows of more than 8 bits a pixel (see `decoding.eight_bits`).
    """

    def __init__(self, data: datasets.Dataset, column: str, processor, what: str = "images") -> None:
        """Raises BadInput if `column` holds no images, or if the array does not fit on the disk."""
        raw = undecoded(data, column)
        shape = (len(raw), 3, *decoding.shape(processor))

        def decode(directory: Path) -> None:
            with whole(directory) as partial:
                _check_space(partial, shape, what)
                _decode(raw, column, processor, shape, partial, what)

        directory = once(_directory(raw, column, processor), decode)
        # "c" is copy-on-write: torch needs writable memory, and a write must not reach the file
        with reading(directory):
            pixels = np.load(directory / "pixels.npy", mmap_mode="c")
            found = bounded_json.read(directory / "rows.json")
            if pixels.shape != shape:
                raise ValueError(f"pixels.npy holds {pixels.shape}, not {shape}")
            self.broken = {int(row): why for row, why in found["broken"].items()}
            self.one_colour, self.scaled = list(found["one_colour"]), dict(found["scaled"])
        self.pixels: Tensor = torch.from_numpy(pixels)
        if rank() == 0:
            for line in self._notable(what):
                logger.warning("%s", line)

    def _notable(self, what: str) -> Iterator[str]:
        of, scaled = f"of {len(self.pixels):,} {what}", {"F": "floats x 255"}
        if rows := self.one_colour:
            yield f"{len(rows):,} {of} are one colour ({columns.named([f'row {row}' for row in rows])})"
        for mode, rows in self.scaled.items():
            rule = scaled.get(mode, "16-bit values / 257")
            yield f"{len(rows):,} {of} were scaled to 8 bits: {rule} ({columns.named([f'row {row}' for row in rows])})"

    @property
    def unusable(self) -> dict[str, list[str]]:
        """As `columns.report_unusable` takes it."""
        return {"images that cannot be decoded": [f"row {row}: {why}" for row, why in sorted(self.broken.items())]}


def place(data: datasets.Dataset, column: str, processor) -> Path:
    """The folder of the decoded images, whether or not it exists."""
    return _directory(undecoded(data, column), column, processor)


def _directory(raw: datasets.Dataset, column: str, processor) -> Path:
    return sources.home() / "decoded" / _digest(raw, column, processor)


def space(rows: int, processor) -> int:
    """Bytes that so many images take when they are decoded."""
    return rows * 3 * math.prod(decoding.shape(processor))


def try_decode(image, decode: Callable[[Image.Image], np.ndarray]) -> tuple[np.ndarray | str, str]:
    """(what `decode` makes of the image, or what is wrong with it; Pillow's mode of the stored image, "" where it
    cannot be opened)."""
    if image is None:
        return "no image", ""
    mode = ""
    try:
        stored = decoding.opened(image)
        mode = stored.mode
        return decode(stored), mode
    except Exception as error:  # decoders raise many kinds on a corrupt file
        name = image if isinstance(image, str) else image.get("path") or ""
        return f"{name} {'' if isinstance(error, BadInput) else f'{type(error).__name__}: '}{error}".strip(), mode


class _Decoder(Dataset):
    """Item i decodes the i-th chunk of rows into the array on disk, and is what rows.json says of them."""

    def __init__(self, raw: datasets.Dataset, column: str, processor, file: Path) -> None:
        # Arrow: one image at a time becomes Python's, however large the others are
        self.raw, self.column, self.file = raw.with_format("arrow"), column, file
        self.decode = partial(decoding.decode, processor=processor)

    def __len__(self) -> int:
        return -(-len(self.raw) // CHUNK)

    def __getitem__(self, chunk: int) -> dict:
        pixels, first = np.load(self.file, mmap_mode="r+"), chunk * CHUNK
        broken, one_colour, scaled = {}, [], {}
        for row, image in enumerate(self.raw[first : first + CHUNK].column(self.column), start=first):
            result, mode = try_decode(image.as_py(), self.decode)
            if isinstance(result, str):
                broken[row] = result
                continue
            pixels[row] = result
            if (result == result[:, :1, :1]).all():
                one_colour.append(row)
            if decoding.is_deep(mode):
                scaled.setdefault(mode, []).append(row)
        return {"broken": broken, "one_colour": one_colour, "scaled": scaled}


def _decode(raw: datasets.Dataset, column: str, processor, shape: tuple[int, ...], directory: Path, what: str) -> None:
    file = directory / "pixels.npy"
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # otherwise writing to the map on a full disk kills the process
        with open(file, "r+b") as f:
            os.posix_fallocate(f.fileno(), 0, file.stat().st_size)
    # processes, not threads: on small images two threads lose more to the interpreter's lock than they gain
    # nor beside other threads that serve a page: a new process would copy the locks that they hold
    alone = len(raw) < ALONE or threading.current_thread() is not threading.main_thread()
    workers = 0 if alone else cores()
    decoder = _Decoder(raw, column, processor, file)
    # its own generator: drawing from the global one would give the run that decodes other weights than the next run
    chunks = DataLoader(decoder, batch_size=None, num_workers=workers, generator=torch.Generator())
    broken: dict[int, str] = {}
    one_colour: list[int] = []
    scaled: dict[str, list[int]] = {}
    with progress.bar(total=len(raw), desc=f"decoding {what}", unit="image", disable=not workers) as bar:
        for some in chunks:
            broken |= some["broken"]
            one_colour += some["one_colour"]
            for mode, rows in some["scaled"].items():
                scaled.setdefault(mode, []).extend(rows)
            bar.update(min(CHUNK, len(raw) - bar.n))
    found = {"broken": broken, "one_colour": one_colour, "scaled": scaled}
    (directory / "rows.json").write_text(json.dumps(found))


def _digest(raw: datasets.Dataset, column: str, processor) -> str:
    """A digest of the rows, the files that they point to, and the processor's settings."""
    import pyarrow.compute as pc

    digest = hashlib.sha256(f"{raw._fingerprint} {column} {processor.to_json_string()} {FORMAT}".encode())
    stored = raw.data.column(column)
    paths = pc.struct_field(stored, "path").filter(pc.is_null(pc.struct_field(stored, "bytes")))
    for path in paths.to_pylist():
        if path is not None and os.path.exists(path):
            file = os.stat(path)
            digest.update(f"{path} {file.st_size} {file.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _check_space(directory: Path, shape: tuple[int, ...], what: str) -> None:
    needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(directory).free
    if needed > 0.95 * free:
        raise BadInput(
            f"{shape[0]:,} {what}, decoded to {shape[2]} x {shape[3]} pixels, take {needed / 1e9:.1f} GB; {directory} "
            f"has {free / 1e9:.1f} GB free: set MMSSL_HOME to a folder on a larger disk, or use --streaming"
        )
