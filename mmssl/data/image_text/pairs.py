"""Image–text pairs: every image decoded once, every caption tokenised once, captions drawn again in each epoch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import columns as table
from mmssl.data import draws
from mmssl.data.images.decoded import Decoded, try_decode
from mmssl.data.images.decoding import is_deep, undecoded
from mmssl.data.text.tokens import Tokens, inner_pieces, side_by_side
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.plain_text import one_line

if TYPE_CHECKING:
    import datasets
    from transformers import ProcessorMixin

    from mmssl.data.images.decoding import Data


logger = logging.getLogger(__name__)

LONGEST_CAPTION = 10_000  # characters; models read at most a few hundred, and to encode 1 MB takes seconds
TOO_LONG = f": longer than {LONGEST_CAPTION:,} characters"


def columns(data: Data, image: str | None, caption: str | None) -> tuple[str, str]:
    """The names of the image and the caption column: those given, else the first with a usual name."""
    found = image_column(data, image)
    if caption is None and set(_names(data)) <= {found, "label"}:
        raise BadInput(
            "the images have no captions: put a text file beside each (cat.jpg, cat.txt), or a table metadata.csv with "
            "the columns file_name and caption into the folder"
        )
    return found, table.find(_names(data), caption, table.CAPTION, "caption")


def image_column(data: Data, given: str | None) -> str:
    return table.find(_names(data), given, table.IMAGE, "image")


def _names(data: Data) -> list[str]:
    return data.column_names or list(next(iter(data)))  # a stream may not know them before its first row


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


def all_captions(data: Data, column: str, rows_of_a_stream: int = 10_000) -> list[str]:
    """All captions, to train a tokenizer on; from a stream, those of its first rows."""
    import datasets

    values = data[column] if isinstance(data, datasets.Dataset) else (r[column] for r in data.take(rows_of_a_stream))
    return [text for value in values for text in clean(value)]


def clean(value: str | Sequence[str] | None) -> list[str]:
    """The captions of a row: one or several strings, without the empty ones and those beyond LONGEST_CAPTION."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip() and not _too_long(text)]


def _too_long(value: str | Sequence[str] | None) -> bool:
    texts = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(text, str) and len(text) > LONGEST_CAPTION for text in texts)


class StreamedPairs:
    """The batches of `Pairs` from a stream: decoded and tokenised as they arrive, in the loader's workers.

    Give the Loader `rows` as its dataset and this object as its collate_fn. Rows that cannot be used are left out, and
    the first NAMED of them are named. If, after MANY rows, they are more than a tenth, BadInput ends the run.
    """

    BUFFER = 1000  # rows that a shuffle chooses from
    NAMED = 5
    MANY = 500  # rows

    def __init__(
        self,
        rows: datasets.IterableDataset,
        processor: ProcessorMixin,
        max_length: int,
        image_column: str,
        caption_column: str,
        seed: int = 0,
        first_caption: float = 0.0,
        word_dropout: float = 0.0,
        word_noise: float = 0.0,
        captions_per_image: int = 1,
    ) -> None:
        self.processor, self.max_length = processor, max_length
        self.image_column, self.caption_column = image_column, caption_column
        self.first_caption, self.seeds = first_caption, seeds(seed, captions_per_image)
        self.words = word_dropout, word_noise, inner_pieces(processor.tokenizer) if word_noise else None
        self.epoch, self.read, self.unusable, self.scaled = 0, 0, 0, set()
        rows = undecoded(rows, image_column) if rows.features else rows
        # one shard at a time: where several are mixed, datasets sleeps for five seconds at the end of each epoch
        rows = rows.shuffle(seed=seed, buffer_size=self.BUFFER, max_buffer_input_shards=1)
        rows = rows.map(self._read, with_indices=True, remove_columns=rows.column_names)
        self.rows = rows.filter(lambda row: row["pixels"] is not None)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _read(self, row: dict, place: int) -> dict:
        texts = clean(row[self.caption_column])
        image = row[self.image_column]
        without = f"no caption{TOO_LONG * _too_long(row[self.caption_column])}"
        pixels, mode = try_decode(image, self.processor.image_processor) if texts else (without, "")
        if is_deep(mode) and mode not in self.scaled:
            self.scaled.add(mode)
            logger.warning("images of mode %s, row %d of the shuffled stream first, are scaled to 8 bits", mode, place)
        self.read += 1
        if isinstance(pixels, str):
            self.unusable += 1
            if self.unusable <= self.NAMED:
                logger.warning("left out: row %d of the shuffled stream: %s", place, one_line(pixels))
            if self.read >= self.MANY and self.unusable > table.MAX_UNUSABLE * self.read:
                raise BadInput(f"{self.unusable} of {self.read} rows of the stream cannot be used, the last: {pixels}")
            pixels = None
        return {"pixels": pixels, "texts": texts, "place": place}

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        places = torch.tensor([row["place"] for row in rows])
        count = torch.tensor([len(row["texts"]) for row in rows])
        texts = []
        for seed in self.seeds:
            drawn = _draw_captions(places, count, self.first_caption, seed, self.epoch).tolist()
            captions = [row["texts"][number] for row, number in zip(rows, drawn, strict=True)]
            tokens = Tokens(captions, self.processor.tokenizer, self.max_length)
            # the rows are numbered from 0 in every batch: adding the first one's place gives each batch its own draw
            texts.append(tokens.altered(torch.arange(len(rows)), *self.words, seed + int(places[0]), self.epoch))
        pixels = torch.from_numpy(np.stack([np.asarray(row["pixels"], dtype=np.uint8) for row in rows]))
        key = draws.draw(places, self.seeds[0], self.epoch)
        return {"pixel_values": pixels, "key": key, **_texts(texts, tokens.pad), "index": places}


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
