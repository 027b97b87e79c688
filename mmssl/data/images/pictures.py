"""Images without captions, each decoded once."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.arguments import Flags, flag
from mmssl.data import columns, draws, sources
from mmssl.data.images.decoded import Decoded
from mmssl.data.images.decoding import as_rgb, undecoded

if TYPE_CHECKING:
    import datasets


LOOKED_AT = 64  # images that are opened to find the most common size
LARGEST = 224  # px: upper limit of the default image size


@dataclass
class PictureArgs(Flags):
    """Flags of recipes that learn from images alone."""

    dataset: str = flag("digits", "digits, mnist5k (built in), a Parquet file, a folder of images, or a Hub id")
    image_column: str | None = flag(None, "column of images; default: the first column with a usual name")
    held_out: int = flag(
        1000, "images held out for evaluation if the data has no test split (at most a tenth)", at_least=1
    )
    decode_size: int | None = flag(
        None,
        "side in pixels of the stored images that crops are cut from; default: --image_size",
        at_least=1,
        at_most=4096,
    )


@dataclass
class Source:
    """Rows of images, not yet decoded.

    side: the most common length of the longer side, in pixels, at most LARGEST.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    column: str
    side: int

    def decoded(self, processor, args: PictureArgs) -> tuple[Pictures, Pictures]:
        """(training, held out), as `processor` resizes them. Raises BadInput if too many cannot be decoded."""
        processor = scaled(processor, args.decode_size) if args.decode_size else processor
        train = Pictures(self.train, processor, self.column, args.seed)
        return train, Pictures(self.held_out, processor, self.column, args.seed, what="held-out images")


def described(train: Pictures, held_out: Pictures) -> dict:
    """The arguments of `pretrain` that describe the data."""
    return {
        "trained_on": f"{len(train):,} images, without labels",
        "held_out": f"{len(held_out):,} images",
        "example": {"images": held_out.pixels[held_out.rows[:4]]},
    }


def find(args: PictureArgs) -> Source:
    """The rows of --dataset, split. Raises BadInput if there are none, or if they hold no images."""
    data = sources.load(args.dataset)
    column = columns.find(data["train"].column_names, args.image_column, columns.IMAGE, "image")
    train, held_out = sources.split(data, args.held_out, together=column)
    return Source(train, held_out, column, _usual_side(train, column))


def _usual_side(rows: datasets.Dataset, column: str) -> int:
    sides: Counter[int] = Counter()
    for image in undecoded(rows, column).select(range(min(len(rows), LOOKED_AT)))[column]:
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
        decoded = Decoded(data, column, processor, what)
        columns.report_unusable(decoded.unusable, len(data))
        self.pixels, self.seed, self.epoch = decoded.pixels, seed, 0
        self.rows = torch.tensor([row for row in range(len(data)) if row not in decoded.broken])

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has other keys."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, a function of seed, epoch and row, from
        which a method derives all random draws for the image (its views, its masked patches). index: (batch,), rows of
        the source."""
        rows = self.rows[torch.as_tensor(indices)]
        return {"pixel_values": self.pixels[rows], "key": draws.draw(rows, self.seed, self.epoch), "index": rows}
