"""Images without captions: each decoded once, or, where that takes too much space, each time it is used."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.arguments import Flags, flag
from mmssl.data import atomic, columns, draws, shards, sources
from mmssl.data.images import decoded, on_demand
from mmssl.data.images.decoded import Decoded
from mmssl.data.images.decoding import as_rgb, undecoded
from mmssl.data.images.on_demand import OnDemand, Table
from mmssl.data.shards import Shards
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.plain_text import say

if TYPE_CHECKING:
    from collections.abc import Iterable

    import datasets

    from mmssl.method import Method


LOOKED_AT = 64  # images that are opened to find the most common size
LARGEST = 224  # px: upper limit of the default image size


@dataclass
class PictureArgs(Flags):
    """Flags of recipes that learn from images alone."""

    dataset: str = flag(
        "digits", "digits, mnist5k, emoji (built in), a folder of images, Parquet or tar files, or a Hub id"
    )
    image_column: str | None = flag(None, "column of images; default: the first column with a usual name")
    held_out: int = flag(
        1000,
        "images held out for evaluation if the data has no test split, at most a tenth of the images; a test split is "
        "held out whole, with --streaming at most so many of its images",
        at_least=1,
    )
    decode_size: int | None = flag(
        None,
        "side in pixels of the stored images that crops are cut from; default: --image_size",
        at_least=1,
        at_most=4096,
    )
    image_cache: float | None = flag(
        None,
        "GB of disk for decoded images; where they need more, data workers decode them in each epoch. With streaming: "
        "for what is fetched from the Hub. Default: half of the free space",
        at_least=0,
    )
    crop_from: str = flag(
        on_demand.DECODED,
        "what crops are cut from: images decoded to --decode_size, or the stored ones in their full size, which data "
        "workers then decode and crop in each epoch",
        on_demand.CROP_FROM,
    )
    streaming: bool = flag(
        False,
        "read images where they lie (Parquet or tar files, here or on the Hub) and decode them during training, for "
        "data larger than memory and disk",
    )


@dataclass
class Source:
    """Rows of images, not yet decoded.

    side: the most common length of the longer side, in pixels, at most LARGEST.
    """

    train: datasets.Dataset | Shards
    held_out: datasets.Dataset
    column: str
    side: int

    def decoded(self, processor, args: PictureArgs) -> tuple[Pictures, Pictures]:
        """(training, held out), as `processor` resizes them. Says which images are decoded when. Raises BadInput if too
        many cannot be decoded."""
        processor = scaled(processor, args.decode_size) if args.decode_size else processor
        room = atomic.room(args.image_cache)
        if self._fits(self.held_out, processor, room):
            held_out = Pictures(self.held_out, processor, self.column, args.seed, "held-out images")
            room = max(0, room - decoded.space(len(self.held_out), processor))
        else:
            held_out = self._undecoded(self.held_out, processor, args.seed, "held-out images")
        on_disk = not args.streaming and args.crop_from == on_demand.DECODED
        whole = on_disk and self._fits(self.train, processor, room)
        if whole:
            train = Pictures(self.train, processor, self.column, args.seed)
        else:
            train = self._undecoded(self.train, processor, args.seed, "images", args.crop_from)
        if rank() == 0:
            size, disk = "{} x {} pixels".format(*train.pixels.shape[2:]), decoded.space(len(train), processor)
            limit = f"{_bytes(disk)} of disk; --image_cache allows {_bytes(room)}"
            if whole:
                say(f"images: decoded once to {size}, {limit}")
            else:
                why = "--streaming" if args.streaming else f"--crop_from {args.crop_from}"
                why = f"decoded once to {size}, they would take {limit}" if on_disk else why
                say(f"{train.pixels.speed(train.rows[: on_demand.TRIED], args.dataloader_num_workers)}; {why}")
        return train, held_out

    def _fits(self, rows: datasets.Dataset | Shards, processor, room: int) -> bool:
        """Whether decoded images fit into so many bytes. Those that an earlier run decoded take no more space."""
        if decoded.space(len(rows), processor) <= room:
            return True
        return not isinstance(rows, Shards) and decoded.place(rows, self.column, processor).exists()

    def _undecoded(
        self, rows: datasets.Dataset | Shards, processor, seed: int, what: str, crop_from: str = on_demand.DECODED
    ) -> Undecoded:
        if isinstance(rows, Shards):
            held_out = on_demand.digests(self.held_out, self.column)
            pixels = OnDemand(rows.reader, len(rows.reader), processor, what, held_out, crop_from)
            return Streamed(pixels, rows.rows, seed)
        pixels = OnDemand(Table(rows, [self.column]), len(rows), processor, what, crop_from=crop_from)
        return Undecoded(pixels, torch.arange(len(rows)), seed)


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def described(train: Pictures, held_out: Pictures) -> dict:
    """The arguments of `pretrain` that describe the data."""
    return {
        "trained_on": f"{len(train):,} images, without labels",
        "held_out": f"{len(held_out):,} images",
        "example": {"images": held_out.pixels[held_out.rows[:4]]},
    }


def find(args: PictureArgs) -> Source:
    """The rows of --dataset, split. Raises BadInput if there are none, or if they hold no images."""
    if args.streaming:
        room = atomic.room(args.image_cache)
        source = f"--dataset {args.dataset}: "
        if found := shards.find(
            args.dataset,
            lambda names: [columns.find(names, args.image_column, columns.IMAGE, "image", source)],
            args.held_out,
            room,
        ):
            train, held_out = found
            column = train.reader.columns[0]
            first = [row[column] for row in train.reader.read(train.rows[:LOOKED_AT].tolist())]
            return Source(train, held_out.as_dataset(), column, _usual_side(first))
    data = sources.load(args.dataset)
    column = columns.find(data["train"].column_names, args.image_column, columns.IMAGE, "image")
    train, held_out = sources.split(data, args.held_out, together=column)
    first = undecoded(train, column).select(range(min(len(train), LOOKED_AT)))[column]
    return Source(train, held_out, column, _usual_side(first))


def _usual_side(images: Iterable) -> int:
    sides: Counter[int] = Counter()
    for image in images:
        try:
            sides[max(as_rgb(image).size)] += 1
        except Exception:  # a corrupt file; it is reported later, when all images are decoded
            continue
    return min(LARGEST, sides.most_common(1)[0][0]) if sides else LARGEST


def scaled(processor, side: int):
    """A copy of the image processor whose output is `side` pixels high; its other sizes change in proportion."""
    processor, size = copy.deepcopy(processor), processor.crop_size if processor.do_center_crop else processor.size
    ratio = side / (size.get("height") or size.get("shortest_edge"))
    for name in ("size", "crop_size"):
        if (sides := getattr(processor, name, None)) is not None:
            setattr(processor, name, {key: round(value * ratio) for key, value in dict(sides).items() if value})
    return processor


class Pictures(Dataset):
    """
    rows:   (images,) the rows of the source that can be used
    pixels: (rows of the source, 3, height, width) uint8: image i is pixels[rows[i]]. Grey images have three equal
            channels, so that every pipeline takes them.
    """

    def __init__(self, data: datasets.Dataset, processor, column: str, seed: int = 0, what: str = "images") -> None:
        """Raises BadInput if more than a tenth of the rows cannot be used."""
        found = Decoded(data, column, processor, what)
        columns.report_unusable(found.unusable, len(data))
        self.pixels, self.seed, self.epoch = found.pixels, seed, 0
        self.rows = torch.tensor([row for row in range(len(data)) if row not in found.broken])

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has other keys."""
        self.epoch = epoch

    def sample(self, count: int) -> Tensor:
        """(count,) rows, spread evenly over the data."""
        return self.rows[torch.linspace(0, len(self) - 1, count).long()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, a function of seed, epoch and row, from
        which a method derives all random draws for the image (its views, its masked patches). index: (batch,), rows of
        the source."""
        rows = self.rows[torch.as_tensor(indices)]
        key = draws.draw(rows, self.seed, self.epoch)
        return {"pixel_values": self._shown(rows, key), "key": key, "index": rows}

    def _shown(self, rows: Tensor, key: Tensor) -> Tensor:
        return self.pixels[rows]


class Undecoded(Pictures):
    """The same batches if all images can be decoded, but each is decoded when it is used. A corrupt image, which is
    known only then, is replaced by its neighbour (see OnDemand), where Pictures leaves it out.

    pixels: OnDemand. rows: as in Pictures, or Rows of shards.
    """

    def __init__(self, pixels: OnDemand, rows: Tensor | shards.Rows, seed: int = 0) -> None:
        self.pixels, self.rows, self.seed, self.epoch = pixels, rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if rank() == 0:
            self.pixels.report()

    def made_for(self, method: Method) -> None:
        """See OnDemand."""
        self.pixels.made_for(method)

    def _shown(self, rows: Tensor, key: Tensor) -> Tensor:
        return self.pixels.shown(rows, key)


class Streamed(Undecoded):
    """Images of shards. An epoch goes through their blocks, each of which is read once (see data.shards)."""

    def order(self, seed: int) -> shards.Order:
        return self.rows.order(seed)

    def sample(self, count: int) -> Tensor:
        """(count,) rows of as few blocks as hold them: the first positions, which are of blocks from everywhere."""
        return self.rows[:count].sort().values


def refuse_streamed(data: Dataset) -> None:
    """Raise BadInput if images come in the order of their blocks, for code that chooses its own, or as crops alone."""
    if isinstance(data, Undecoded) and data.pixels.crop_from == on_demand.STORED:
        raise BadInput(f"--crop_from {on_demand.STORED}: this method needs whole training images, too: leave it out")
    if isinstance(data, Streamed):
        raise BadInput(
            "--streaming: this method needs its training images in any order, so they must be on this machine: leave "
            "--streaming out. They are not decoded beforehand with --image_cache 0"
        )
