"""Labelled images, clips, texts or recordings in the form an encoder takes: the data of probes and fine-tuning."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mmssl.data import columns, sources
from mmssl.data.audio import waves
from mmssl.data.built_in import DRAWN
from mmssl.data.images.pictures import Pictures
from mmssl.data.labels import numbered, with_labels
from mmssl.data.text.tokens import Tokens
from mmssl.data.video import clips, examples
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

INPUT_COLUMNS = {"image": columns.IMAGE, "video": columns.VIDEO, "text": columns.TEXT, "audio": columns.AUDIO}
CLIP_FRAMES = 8  # of a clip, for encoders that take any number
VISUAL = ("image", "video")
WHICH_CLIP = "which_video"  # the label column that stands for the video itself, which a clip is cut from


@dataclass
class Labelled(Dataset):
    """inputs: a map-style Dataset whose __getitems__ returns the input of evaluation.downstream.encoder.Encoder.
    label: (examples,) int64. names: of the classes. identity: a string that changes with the data.
    lengths: (examples,), if they differ."""

    inputs: Dataset
    label: Tensor
    names: list[str]
    identity: str
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.inputs, "set_epoch"):
            self.inputs.set_epoch(epoch)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """The batch of `inputs`, plus label: (batch,)."""
        return {**self.inputs.__getitems__(rows), "label": self.label[rows]}

    def select(self, rows: Tensor) -> Labelled:
        """A subset of the examples. rows: (n,) int64."""
        digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
        lengths = None if self.lengths is None else self.lengths[rows]
        inputs, identity = Subset(self.inputs, rows.tolist()), f"{self.identity} {digest}"
        return Labelled(inputs, self.label[rows], self.names, identity, lengths)

    def batches(self, size: int) -> tuple[Tensor, ...]:
        """The rows of each batch in one pass over all examples, sorted by length to keep padding small."""
        order = torch.arange(len(self)) if self.lengths is None else self.lengths.argsort()
        return order.split(size)


def load(
    name: str,
    modality: str,
    processor,
    *,
    input_column: str | None = None,
    label_column: str | None = None,
    held_out: int = 1000,
    hold_out: str | None = None,
    max_samples: int = 0,
    max_length: int = 256,
    max_seconds: float = 10.0,
    frames: int = CLIP_FRAMES,
) -> tuple[Labelled, Labelled]:
    """(training, test). The test data is the rows that `hold_out`, "column=value,value", selects; else the source's own
    test data; else `held_out` rows.

    max_samples: upper limit for each part; 0: no limit. frames: of a clip. Encoders of images take videos, too, if the
    data has no images. With the label column "which_video", the test is to recognise the video of a clip: training
    clips are of its first two thirds, test clips of the rest. Raises BadInput if labels are missing or all the same, if
    a test label does not occur in training, or if an input cannot be read.
    """
    if hold_out and (name in DRAWN or label_column == WHICH_CLIP):
        raise BadInput(f"--hold_out {hold_out} has no effect: which clips are tested on is fixed")
    if name in DRAWN and modality in VISUAL:
        return examples.moving(name, processor, frames, max_samples, Labelled)
    data = clips.load(name) if modality in VISUAL else sources.load(name, texts=modality == "text")
    if modality == "image" and input_column is None and not {*columns.IMAGE} & {*data["train"].column_names}:
        modality = "video"
    if label_column == WHICH_CLIP and modality == "video":
        column = columns.find(data["train"].column_names, input_column, columns.VIDEO, "input")
        if max_samples:
            raise BadInput(f"--max_samples {max_samples} has no effect with --label_column {WHICH_CLIP}: leave it out")
        return examples.which(data["train"], column, processor, frames, _by_content)
    input_column = columns.find(data["train"].column_names, input_column, INPUT_COLUMNS[modality], "input")
    together = input_column if modality == "image" else None
    split, labels, names = with_labels(data, label_column, held_out, hold_out, max_samples, together)
    limits, parts = Limits(max_length, max_seconds, frames), []
    for rows, label in zip(split, labels, strict=True):
        usable, inputs = READ[modality](rows, input_column, processor, limits)
        identity = f"{_content(inputs)} {input_column} {limits}"
        parts.append(Labelled(inputs, label[usable], names, identity, inputs.lengths))
    train, test = parts
    if (train.label == train.label[0]).all():  # others were in rows that cannot be read, or beyond max_samples
        raise BadInput(
            f"all {len(train)} training rows that are left have the label {train.names[int(train.label[0])]!r}: a "
            "probe needs two classes; use more rows"
        )
    return train, test


def unlabelled(
    name: str,
    modality: str,
    processor,
    *,
    input_column: str | None = None,
    held_out: int = 1000,
    max_length: int = 256,
    max_seconds: float = 10.0,
) -> Dataset:
    """The inputs of the training data alone. The column of inputs is the only one that is read: a column of labels need
    not exist, and none can be seen."""
    data = sources.load(name, texts=modality == "text")
    column = columns.find(data["train"].column_names, input_column, INPUT_COLUMNS[modality], "input")
    train, _ = sources.split(data, held_out, together=column if modality == "image" else None)
    return READ[modality](train.select_columns([column]), column, processor, Limits(max_length, max_seconds))[1]


def test_data(
    name: str,
    modality: str,
    processor,
    names: list[str],
    *,
    input_column: str | None = None,
    label_column: str | None = None,
    held_out: int = 1000,
    max_length: int = 256,
    max_seconds: float = 10.0,
) -> Labelled:
    """The test data alone, with the classes of other data, `names`. No label of training data is read. Raises BadInput
    if a label is none of these classes."""
    data = sources.load(name, texts=modality == "text")
    column = columns.find(data["train"].column_names, input_column, INPUT_COLUMNS[modality], "input")
    _, test = sources.split(data, held_out, together=column if modality == "image" else None)
    label = numbered(test, label_column, names, name)
    limits = Limits(max_length, max_seconds)
    usable, inputs = READ[modality](test, column, processor, limits)
    return Labelled(inputs, label[usable], names, f"{_content(inputs)} {column} {limits}", inputs.lengths)


def _by_content(inputs: Dataset, label: Tensor, names: list[str], identity: str) -> Labelled:
    return Labelled(inputs, label, names, f"{_content(inputs)} {identity}")


def _content(inputs: Dataset) -> str:
    """Changes with the inputs; the names of their files would not."""
    digest = hashlib.sha256()
    for row in range(len(inputs)):
        digest.update(hashlib.sha256(inputs.content(row)).digest())
    return digest.hexdigest()


def overlap(train: Labelled, test: Labelled) -> list[int]:
    """The rows of test examples whose content equals that of a training example, byte for byte."""
    seen = {hashlib.sha256(train.inputs.content(row)).digest() for row in range(len(train))}
    return [row for row in range(len(test)) if hashlib.sha256(test.inputs.content(row)).digest() in seen]


class Limits(NamedTuple):
    """What is read of one example at most: tokens of a text, seconds of a recording, frames of a video."""

    tokens: int
    seconds: float
    frames: int = CLIP_FRAMES


class Images(Pictures):
    """Pictures whose content can be compared."""

    lengths = None

    def content(self, row: int) -> bytes:
        return self.pixels[self.rows[row]].numpy().tobytes()


def _images(rows: datasets.Dataset, column: str, processor, limits: Limits) -> tuple[Tensor, Images]:
    inputs = Images(rows, getattr(processor, "image_processor", processor), column, what="labelled images")
    return inputs.rows, inputs


def _clips(rows: datasets.Dataset, column: str, processor, limits: Limits) -> tuple[Tensor, examples.Examples]:
    return examples.middles(rows, column, processor, limits.frames)


class Texts(Dataset):
    """Texts, tokenised once."""

    def __init__(self, texts: list[str], tokenizer, max_length: int) -> None:
        if tokenizer.pad_token is None:  # any token will do: the attention mask hides it
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
        self.texts, self.tokens = texts, Tokens(texts, tokenizer, min(max_length, tokenizer.model_max_length))
        self.lengths = self.tokens.starts.diff()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return self.tokens[torch.as_tensor(rows)]

    def content(self, row: int) -> bytes:
        return " ".join(self.texts[row].split()).encode()


def _texts(rows: datasets.Dataset, column: str, processor, limits: Limits) -> tuple[Tensor, Texts]:
    texts = list(rows[column])
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"--input_column {column}, row {row}: {text!r} is not text")
    tokenizer = getattr(processor, "tokenizer", processor)
    inputs = Texts(texts, tokenizer, limits.tokens)
    longest = min(limits.tokens, tokenizer.model_max_length)
    if cut := int((inputs.lengths >= longest).sum()):
        why = "the longest that the encoder reads" if longest < limits.tokens else "--max_length"
        logger.warning("%s of %s texts are cut at %d tokens: %s", f"{cut:,}", f"{len(texts):,}", longest, why)
    return torch.arange(len(texts)), inputs


class Waves(Dataset):
    """Recordings in memory; the feature extractor pads each batch."""

    def __init__(self, recordings: list[np.ndarray], extractor) -> None:
        self.recordings, self.extractor = recordings, extractor
        self.lengths = torch.tensor([len(wave) for wave in recordings])

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """The output of the extractor, plus lengths: (batch,), in samples."""
        batch = [self.recordings[row] for row in rows]
        rate = self.extractor.sampling_rate
        encoded = self.extractor(batch, sampling_rate=rate, padding=True, return_tensors="pt")
        return {**encoded, "lengths": self.lengths[rows]}

    def content(self, row: int) -> bytes:
        return self.recordings[row].tobytes()


def _waves(rows: datasets.Dataset, column: str, processor, limits: Limits) -> tuple[Tensor, Waves]:
    extractor = getattr(processor, "feature_extractor", processor)
    found = list(waves.read(rows, column, extractor.sampling_rate, limits.seconds))
    broken = [f"row {row}: {wave}" for row, wave in enumerate(found) if isinstance(wave, str)]
    columns.report_unusable({f"recordings in {column} that cannot be read": broken}, len(found))
    usable = [row for row, wave in enumerate(found) if not isinstance(wave, str)]
    return torch.tensor(usable), Waves([found[row] for row in usable], extractor)


# modality -> reader of a column of inputs: (the usable rows, the inputs)
READ = {"image": _images, "text": _texts, "audio": _waves, "video": _clips}
