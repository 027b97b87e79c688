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


class Limits(NamedTuple):
    """What is read of one example at most: tokens of a text, seconds of a recording, frames of a video."""

    tokens: int
    seconds: float
    frames: int = CLIP_FRAMES


@dataclass
class Labelled(Dataset):
    """inputs: a map-style Dataset whose __getitems__ returns the input of evaluation.encoder.Encoder.
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


class Images(Pictures):
    """Pictures whose content can be compared."""

    lengths = None

    def content(self, row: int) -> bytes:
        return self.pixels[self.rows[row]].numpy().tobytes()


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


def with_labels(
    data: dict[str, datasets.Dataset],
    label_column: str | None = None,
    held_out: int = 1000,
    hold_out: str | None = None,
    max_samples: int = 0,
    together: str | None = None,
) -> tuple[list[datasets.Dataset], list[Tensor], list[str]]:
    """([training, test], the labels of each, the names of the classes). Reads no inputs. together: as in
    `sources.split`. Raises what `load` raises of labels."""
    split = _held_out(data["train"], hold_out) if hold_out else sources.split(data, held_out, together=together)
    if set(split[0].column_names) == {"image"}:  # a folder of images without a table
        raise BadInput("the images have no labels: put those of each class into a folder of its own, at least two")
    column = columns.find(split[0].column_names, label_column, columns.LABEL, "label")
    labels, names = _labels(list(split), column)
    if max_samples:  # of all classes: a few rows may lack one
        chosen = [_some(len(part), max_samples) for part in split]
        split = [part.select(rows) for part, rows in zip(split, chosen, strict=True)]
        labels = [label[rows] for label, rows in zip(labels, chosen, strict=True)]
    return list(split), labels, names


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
    import datasets

    data = sources.load(name, texts=modality == "text")
    column = columns.find(data["train"].column_names, input_column, INPUT_COLUMNS[modality], "input")
    _, test = sources.split(data, held_out, together=column if modality == "image" else None)
    label_column = columns.find(test.column_names, label_column, columns.LABEL, "label")
    feature = test.features[label_column]
    text = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
    _refuse_missing(list(test[label_column]), label_column, "target test")
    found = [text(value) for value in test[label_column]]
    if unknown := sorted(set(found) - set(names)):
        raise BadInput(
            f"--target_dataset {name}: its label {unknown[0]!r} is none of {', '.join(names)}, the source's classes"
        )
    limits = Limits(max_length, max_seconds)
    usable, inputs = READ[modality](test, column, processor, limits)
    label = torch.tensor([names.index(each) for each in found])[usable]
    return Labelled(inputs, label, names, f"{_content(inputs)} {column} {limits}", inputs.lengths)


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


def subset(label: Tensor, amount: str, seed: int) -> Tensor:
    """(rows,) int64, sorted: a stratified draw. amount: "10%" takes that part of each class, "20" that many of each.

    Drawn with `seed`; every class keeps at least one. Raises BadInput if `amount` is neither.
    """
    try:
        fraction = float(amount.removesuffix("%")) / 100 if amount.endswith("%") else None
        each = None if fraction is not None else int(amount)
    except ValueError:
        fraction, each = None, 0
    if (fraction is not None and not 0 < fraction <= 1) or (each is not None and each < 1):
        raise BadInput(f"--labels {amount}: give a percentage of the training labels (10%) or a number per class (20)")
    generator, chosen = torch.Generator().manual_seed(seed), []
    for c in label.unique():
        rows = (label == c).nonzero()[:, 0]
        wanted = each if fraction is None else max(1, round(fraction * len(rows)))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:wanted]])
    return torch.cat(chosen).sort()[0]


def _some(rows: int, at_most: int) -> list[int]:
    """A random choice that is always the same. Not the first rows: those are often all of one class."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return order[:at_most].sort()[0].tolist()


def _held_out(rows: datasets.Dataset, condition: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    column, _, values = condition.partition("=")
    if column not in rows.column_names or not values:
        raise BadInput(
            f"--hold_out {condition}: give a column of {', '.join(rows.column_names)}, as in speaker=theo,lucas"
        )
    feature = rows.features[column]
    text = feature.int2str if hasattr(feature, "int2str") else str  # a ClassLabel
    found, wanted = np.array([text(value) for value in rows[column]]), [value.strip() for value in values.split(",")]
    held, known = np.isin(found, wanted), sorted(set(found.tolist()))
    if unknown := [value for value in wanted if value not in known]:
        raise BadInput(f"--hold_out {condition}: no row has {unknown[0]!r}; {column} holds {columns.named(known)}")
    if held.all():
        raise BadInput(f"--hold_out {condition} holds out all {len(held)} rows: training needs some")
    return rows.select(np.flatnonzero(~held)), rows.select(np.flatnonzero(held))


def _labels(parts: list[datasets.Dataset], column: str) -> tuple[list[Tensor], list[str]]:
    import datasets

    kind = parts[0].features[column]
    if not isinstance(kind, (datasets.Value, datasets.ClassLabel)):
        raise BadInput(f"--label_column {column} holds {kind}, not one label per row; name another column")
    if column not in parts[1].column_names:
        raise BadInput(
            f"--label_column {column}: the test data has no such column, only {', '.join(parts[1].column_names)}"
        )
    values = [list(part[column]) for part in parts]
    for what, of_part in zip(("training", "test"), values, strict=True):
        _refuse_missing(of_part, column, what)
    known = sorted(set(values[0]))
    if fractions := [value for value in known if isinstance(value, float) and not value.is_integer()]:
        raise BadInput(
            f"--label_column {column} holds fractions such as {fractions[0]:g}: a quantity, not classes; name another "
            "column"
        )
    if len(known) < 2:
        raise BadInput(
            f"--label_column {column}: every training row has the label {known[0]!r}; a probe needs two classes"
        )
    if len(known) > len(values[0]) / 2:
        raise BadInput(
            f"--label_column {column}: {len(known)} different values in {len(values[0])} rows cannot be classes; name "
            "another column"
        )
    if unknown := set(values[1]) - set(known):
        raise BadInput(f"--label_column {column}: no training row has the test label {min(unknown)!r}")
    feature, number = parts[0].features[column], {value: i for i, value in enumerate(known)}
    names = [feature.int2str(value) if isinstance(feature, datasets.ClassLabel) else str(value) for value in known]
    return [torch.tensor([number[value] for value in of_part]) for of_part in values], names


def _refuse_missing(values: list, column: str, what: str) -> None:
    missing = [row for row, value in enumerate(values) if value in (None, "", -1) or value != value]  # NaN
    if missing:
        raise BadInput(
            f"--label_column {column}: {len(missing)} {what} rows have no label, row {missing[0]} first (an empty text "
            "and -1 count as none)"
        )


def _images(rows: datasets.Dataset, column: str, processor, limits: Limits) -> tuple[Tensor, Images]:
    inputs = Images(rows, getattr(processor, "image_processor", processor), column, what="labelled images")
    return inputs.rows, inputs


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


def _waves(rows: datasets.Dataset, column: str, processor, limits: Limits) -> tuple[Tensor, Waves]:
    extractor = getattr(processor, "feature_extractor", processor)
    found = list(waves.read(rows, column, extractor.sampling_rate, limits.seconds))
    broken = [f"row {row}: {wave}" for row, wave in enumerate(found) if isinstance(wave, str)]
    columns.report_unusable({f"recordings in {column} that cannot be read": broken}, len(found))
    usable = [row for row, wave in enumerate(found) if not isinstance(wave, str)]
    return torch.tensor(usable), Waves([found[row] for row in usable], extractor)


def _clips(rows: datasets.Dataset, column: str, processor, limits: Limits) -> tuple[Tensor, examples.Examples]:
    return examples.middles(rows, column, processor, limits.frames)


# modality -> reader of a column of inputs: (the usable rows, the inputs)
READ = {"image": _images, "text": _texts, "audio": _waves, "video": _clips}
