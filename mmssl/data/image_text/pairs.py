"""Image–text pairs: every image decoded once, every caption tokenised once, captions drawn again in each epoch. Of data
that is larger than the disk, images are decoded and captions tokenised whenever they are used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import atomic, draws, shards, sources
from mmssl.data import columns as table
from mmssl.data.images import on_demand
from mmssl.data.images.decoded import Decoded
from mmssl.data.images.on_demand import OnDemand
from mmssl.data.text.tokens import Tokens, inner_pieces, side_by_side
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.plain_text import say

if TYPE_CHECKING:
    import datasets
    from transformers import ProcessorMixin

    from mmssl.data.shards import Reader
    from mmssl.method import Method


logger = logging.getLogger(__name__)

MANY_CAPTIONS = 10_000  # rows of a stream that the tokenizer is trained on
LONGEST_CAPTION = 10_000  # characters; models read at most a few hundred, and to encode 1 MB takes seconds
TOO_LONG = f": longer than {LONGEST_CAPTION:,} characters"


def columns(names: Sequence[str], image: str | None, caption: str | None, source: str = "") -> tuple[str, str]:
    """The image and the caption column: those given, else the first with a usual name. source: as in `table.find`."""
    found = table.find(names, image, table.IMAGE, "image", source)
    if caption is None and set(names) <= {found, "label"}:
        raise BadInput(
            "the images have no captions: put a text file beside each (cat.jpg, cat.txt), or a table metadata.csv with "
            "the columns file_name and caption into the folder"
        )
    return found, table.find(names, caption, table.CAPTION, "caption", source)


def image_column(data: datasets.Dataset, given: str | None) -> str:
    return table.find(data.column_names, given, table.IMAGE, "image")


@dataclass
class Source:
    """Pairs, not yet decoded.

    train: their rows, with the columns of images and captions first. rows: (pairs,) those to train on; None: all of a
    data set that is on this machine.
    """

    train: datasets.Dataset | Reader
    held_out: datasets.Dataset
    columns: tuple[str, str]
    rows: shards.Rows | Tensor | None = None

    def captions(self) -> list[str]:
        """To train a tokenizer on: all of them, or MANY_CAPTIONS rows of a stream."""
        if self.rows is None:
            return all_captions(self.train, self.columns[1])
        rows = self.train.only(self.columns[1:]).read(self.rows[:MANY_CAPTIONS].tolist())
        return [text for row in rows for text in clean(row[self.columns[1]])]

    def training(
        self,
        processor: ProcessorMixin,
        max_length: int,
        workers: int,
        crop_from: str = on_demand.DECODED,
        **captions,
    ) -> Pairs | StreamedPairs:
        """crop_from: as of OnDemand. captions: as `Pairs` takes them. Says how fast images are decoded during training.
        Raises what `Pairs` raises."""
        if self.rows is None:
            if crop_from == on_demand.STORED:
                raise BadInput(f"--crop_from {crop_from} works with --streaming only: add that, or leave this out")
            return Pairs(self.train, processor, max_length, *self.columns, **captions)
        held_out = on_demand.digests(self.held_out, self.columns[0])
        pixels = Captioned(self.train, len(self.train), processor.image_processor, "pairs", held_out, crop_from)
        kind = StreamedInBlocks if isinstance(self.rows, shards.Rows) else StreamedPairs
        if rank() == 0:
            say(f"{pixels.speed(self.rows[: on_demand.TRIED], workers)}; --streaming")
        return kind(pixels, self.rows, processor.tokenizer, max_length, **captions)


def find(
    name: str,
    image: str | None,
    caption: str | None,
    held_out: int,
    streaming: bool = False,
    label: str | None = None,
) -> Source:
    """The rows of --dataset, split. image, caption: columns; None: the first with a usual name. held_out: pairs held
    out if there is no test data, at most a tenth. streaming: read the training data where it lies. label: a column of
    the held-out rows that is kept, too. Raises BadInput if there are none, or if they hold no pairs."""
    if streaming:
        choose = partial(_chosen, image=image, caption=caption, label=label, source=f"--dataset {name}: ")
        if found := shards.find(name, choose, held_out, atomic.room(None)):
            train, test = found
            chosen = tuple(train.reader.columns[:2])
            return Source(train.reader.only(chosen), test.as_dataset(), chosen, train.rows)
    data = sources.load(name)
    chosen = columns(data["train"].column_names, image, caption)
    train, test = sources.split(data, held_out, together=chosen[0])
    if not streaming:
        return Source(train, test, chosen)
    return Source(on_demand.Table(train, chosen), test, chosen, torch.arange(len(train)))


def _chosen(
    names: Sequence[str], image: str | None, caption: str | None, label: str | None, source: str
) -> tuple[str, ...]:
    found = columns(names, image, caption, source)
    return (*found, label) if label in names else found


class Pairs(Dataset):
    """Images, decoded once (see images/decoded.py), and their captions, tokenised once.

    rows:     (images,) the rows of the source that can be used
    pixels:   (rows of the source, 3, height, width) uint8: image i is pixels[rows[i]]
    captions: the texts of each image, at least one
    tokens:   all captions in one list; those of image i are first[i] to first[i + 1]
    """

    def __init__(
        self,
        data: datasets.Dataset,
        processor: ProcessorMixin,
        max_length: int,
        image_column: str,
        caption_column: str,
        seed: int = 0,
        first_caption: float = 0.0,
        word_dropout: float = 0.0,
        word_noise: float = 0.0,
        captions_per_image: int = 1,
        what: str = "images",
    ) -> None:
        """first_caption: probability of drawing an image's first caption; otherwise any of them is drawn. word_dropout:
        fraction of the words that is left out, never all of a caption. word_noise: fraction of the words that is
        replaced by random pieces of words. captions_per_image: captions drawn at a time, each altered separately. All
        four are for training.

        Raises BadInput if there are no rows, or if more than a tenth of them cannot be used.
        """
        self.epoch, self.first_caption, self.seeds = 0, first_caption, seeds(seed, captions_per_image)
        self.words = word_dropout, word_noise, inner_pieces(processor.tokenizer) if word_noise else None
        values = list(data[caption_column])
        texts, too_long = [clean(value) for value in values], [_too_long(value) for value in values]
        silent = [f"row {row}{TOO_LONG * too_long[row]}" for row, captions in enumerate(texts) if not captions]
        silent = {"images without a caption": silent}
        others = [f"row {row}" for row, captions in enumerate(texts) if captions and too_long[row]]
        if others and rank() == 0:
            logger.warning("left out captions of %d images%s (%s)", len(others), TOO_LONG, table.named(others))
        table.unusable(silent, len(data))  # before the costly part
        decoded = Decoded(data, image_column, processor.image_processor, what)
        table.report_unusable(decoded.unusable | silent, len(data))
        self.pixels = decoded.pixels
        self.rows = torch.tensor([row for row, captions in enumerate(texts) if captions and row not in decoded.broken])
        self.captions = [texts[row] for row in self.rows.tolist()]
        self.first = torch.tensor([0, *np.cumsum([len(captions) for captions in self.captions])])
        self.tokens = Tokens([text for captions in self.captions for text in captions], processor.tokenizer, max_length)

    def set_epoch(self, epoch: int) -> None:
        """Each epoch draws other captions."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.captions)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, size, size) uint8; input_ids, attention_mask: (batch, tokens), or, with several
        captions per image, (batch, captions, tokens); key: (batch,) int64, from which an image's views are drawn;
        index: (batch,), rows of the source."""
        chosen = torch.tensor(indices)
        count, texts = self.first[chosen + 1] - self.first[chosen], []
        for seed in self.seeds:
            drawn = _draw_captions(chosen, count, self.first_caption, seed, self.epoch)
            texts.append(self.tokens.altered(self.first[chosen] + drawn, *self.words, seed, self.epoch))
        rows = self.rows[chosen]
        key = draws.draw(rows, self.seeds[0], self.epoch)
        return {"pixel_values": self.pixels[rows], "key": key, **_texts(texts, self.tokens.pad), "index": rows}

    def pictures(self, pairs: Tensor) -> Tensor:
        """(n, 3, size, size) uint8."""
        return self.pixels[self.rows[pairs]]

    def others(self, pairs: Tensor, drawn: Tensor) -> Tensor:
        """For each pair another one, any of them. drawn: (n,) int64."""
        return (pairs + 1 + drawn % (len(self) - 1)) % len(self)


def all_captions(data: datasets.Dataset, column: str) -> list[str]:
    """To train a tokenizer on."""
    return [text for value in data[column] for text in clean(value)]


def clean(value: str | Sequence[str] | None) -> list[str]:
    """The captions of a row: one or several strings, without the empty ones and those beyond LONGEST_CAPTION."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip() and not _too_long(text)]


def _too_long(value: str | Sequence[str] | None) -> bool:
    texts = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(text, str) and len(text) > LONGEST_CAPTION for text in texts)


class Captioned(OnDemand):
    """Pairs of which both the image and a caption can be used. The reader's second column holds the captions."""

    def decoded(self, row: int, stored: dict[str, Any], key: Tensor | None) -> np.ndarray | str:
        value = stored[self.reader.columns[1]]
        return super().decoded(row, stored, key) if clean(value) else f"no caption{TOO_LONG * _too_long(value)}"


class StreamedPairs(Dataset):
    """The batches of `Pairs`, each image decoded and each caption tokenised when it is used. In the place of a pair
    that cannot be used comes the next one, see OnDemand.

    rows: (pairs,) of the reader.
    """

    def __init__(
        self,
        pixels: Captioned,
        rows: Tensor | shards.Rows,
        tokenizer,
        max_length: int,
        seed: int = 0,
        first_caption: float = 0.0,
        word_dropout: float = 0.0,
        word_noise: float = 0.0,
        captions_per_image: int = 1,
    ) -> None:
        """first_caption and after: as in `Pairs`."""
        self.pixels, self.rows, self.tokenizer, self.max_length = pixels, rows, tokenizer, max_length
        self.epoch, self.first_caption, self.seeds = 0, first_caption, seeds(seed, captions_per_image)
        self.words = word_dropout, word_noise, inner_pieces(tokenizer) if word_noise else None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if rank() == 0:
            self.pixels.report()

    def made_for(self, method: Method) -> None:
        """See OnDemand."""
        self.pixels.made_for(method)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """As in `Pairs`."""
        rows = self.rows[torch.tensor(indices)]
        key = draws.draw(rows, self.seeds[0], self.epoch)
        pairs = self.pixels.usable(rows.tolist(), key)
        captions = [clean(stored[self.pixels.reader.columns[1]]) for stored, _ in pairs]
        count, texts = torch.tensor([len(several) for several in captions]), []
        for seed in self.seeds:
            drawn = _draw_captions(rows, count, self.first_caption, seed, self.epoch).tolist()
            chosen = [several[number] for several, number in zip(captions, drawn, strict=True)]
            tokens = Tokens(chosen, self.tokenizer, self.max_length)
            texts.append(tokens.altered(torch.arange(len(rows)), *self.words, seed, self.epoch, key=rows))
        pixels = torch.from_numpy(np.stack([image for _, image in pairs]))
        return {"pixel_values": pixels, "key": key, **_texts(texts, tokens.pad), "index": rows}

    def pictures(self, pairs: Tensor) -> Tensor:
        """As in `Pairs`."""
        return self.pixels[self.rows[pairs]]

    def others(self, pairs: Tensor, drawn: Tensor) -> Tensor:
        """As in `Pairs`."""
        return (pairs + 1 + drawn % (len(self) - 1)) % len(self)


class StreamedInBlocks(StreamedPairs):
    """Pairs of shards. An epoch goes through their blocks, each of which is read once (see data.shards)."""

    def order(self, seed: int) -> shards.Order:
        return self.rows.order(seed)

    def others(self, pairs: Tensor, drawn: Tensor) -> Tensor:
        """For each pair another one of its block, which is read with it; of a block of one pair, the next block's."""
        begin, count = self.rows.block(pairs)
        near = begin + (pairs - begin + 1 + drawn % (count - 1).clamp(min=1)) % count
        return torch.where(count > 1, near, (pairs + 1) % len(self))


def seeds(seed: int, n: int) -> list[int]:
    """`seed` and n - 1 others far from it. They differ in the low 32 bits, the only ones that draws.draw uses."""
    return [seed ^ (number << 20) for number in range(n)]


def _texts(texts: list[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    return texts[0] if len(texts) == 1 else side_by_side(texts, pad)


def _draw_captions(images: Tensor, count: Tensor, first_caption: float, seed: int, epoch: int) -> Tensor:
    """(images,) which of its `count` captions each image gets in this epoch: the first with probability first_caption,
    otherwise a random one. images, count: (images,) int64."""
    drawn = draws.draw(images, seed, epoch) % count
    drawn[draws.share(images, ~seed, epoch) < first_caption] = 0
    return drawn
