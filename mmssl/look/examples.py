"""The examples that a run is asked about: rows of a data set, each with its feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import columns, labelled, sources
from mmssl.data.images.decoding import as_rgb, decode, undecoded
from mmssl.data.text import documents
from mmssl.errors import BadInput, first_line
from mmssl.evaluation.downstream import encoder as encoders
from mmssl.look.run import kept, made_once
from mmssl.plain_text import say

if TYPE_CHECKING:
    import datasets

    from mmssl.look.run import Run

LONGEST_TEXT = 256  # tokens of a text that its feature is of
LONGEST_SOUND = 10.0  # seconds
BATCH = 64
CLASSES = 50  # different values of a column that can colour a map; of numbers, more are a scale
SHORT = 60  # characters of a value in the description of a row


def nearest(query: Tensor, features: Tensor, k: int, leave_out: int | None = None) -> list[tuple[int, float]]:
    """[(index, cosine)] of the k nearest features, nearest first. query: (dim,); features: (n, dim), both of unit
    length. leave_out: an index that is not an answer, the query's own."""
    similarity = features @ query
    if leave_out is not None:
        similarity[leave_out] = -torch.inf
    k = min(k, len(features) - (leave_out is not None))
    values, found = similarity.topk(max(k, 0))
    return list(zip(found.tolist(), values.tolist(), strict=True))


def examples_of(run: Run) -> Examples:
    """The examples of a run, the same ones at every call. Raises BadInput if there is no data that its model reads."""
    if run.dataset is None:
        raise BadInput(f"{run.name}: its training data is not here any more; give another with --dataset")
    return kept(run, "examples", lambda: Examples(run))


class Examples:
    """
    rows:   of the data set.
    column: of the images, texts or recordings.
    caption_column: of an image-text run, else None.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.modality, self.locks = run, run.encodes, {}
        wanted = labelled.INPUT_COLUMNS[self.modality]
        data = _load(run, self.modality)
        names = data["train"].column_names
        given = run.args.get(f"{self.modality}_column")
        self.column = columns.find(names, given if given in names else None, wanted, self.modality)
        captions = [run.args.get("caption_column"), *columns.CAPTION] if run.pairs_images_and_texts else []
        self.caption_column = next((name for name in captions if name in names), None)
        together = self.column if self.modality == "image" else None
        held_out = "test" in data or run.held_out
        rows = sources.split(data, run.held_out, together=together)[1] if held_out else data["train"]
        rows = rows.select(range(min(run.max_samples or len(rows), len(rows))))
        self.rows = _inside(run, rows, self.column) if self.modality != "text" else rows
        part = "held-out " if held_out else ""
        self.about = f"{len(self.rows):,} {part}{self.modality}s of {run.dataset}"

    def __len__(self) -> int:
        return len(self.rows)

    # ------------------------------------------------------------ features

    @made_once
    def inputs(self) -> tuple[Dataset, list[int]]:
        """(what the encoder reads, the row of each)."""
        run = self.run
        processor = run.pair.processor.image_processor if run.pairs_images_and_texts else run.encoder.processor
        if self.modality == "image":
            images = labelled.Images(self.rows, processor, self.column)
            return images, images.rows.tolist()
        if self.modality == "text":
            texts = [text if isinstance(text, str) and text.strip() else "-" for text in self.rows[self.column]]
            return labelled.Texts(texts, processor, LONGEST_TEXT), list(range(len(texts)))
        usable = [row for row, wave in enumerate(self.sounds) if not isinstance(wave, str)]
        return labelled.Waves([self.sounds[row] for row in usable], processor), usable

    @made_once
    def features(self) -> tuple[Tensor, list[int]]:
        """((examples, dim) of unit length, the row of each). Kept on disk by a digest of model and data."""
        inputs, rows = self.inputs
        encoder = _ImageHalf.of(self.run) if self.run.pairs_images_and_texts else self.run.encoder
        return self._unit(encoder, inputs, inputs.lengths, f"{self.rows._fingerprint} {self.column}"), rows

    @made_once
    def captions(self) -> tuple[list[str], Tensor]:
        """(the first caption of each row, (rows, dim) features of unit length)."""
        if self.caption_column is None:
            raise BadInput(f"{self.run.dataset} has no captions to compare with; give other data with --dataset")
        texts = [_first(value) for value in self.rows[self.caption_column]]
        identity = f"{self.rows._fingerprint} {self.caption_column}"
        return texts, self._unit(_TextHalf.of(self.run), _Captions(texts, self.run.pair), None, identity)

    def _unit(self, encoder, inputs: Dataset, lengths: Tensor | None, identity: str) -> Tensor:
        identity = f"{identity} {LONGEST_TEXT} {LONGEST_SOUND}"
        data = labelled.Labelled(inputs, torch.zeros(len(inputs), dtype=torch.long), [], identity, lengths)
        return F.normalize(encoders.features(encoder, data, BATCH)[0], dim=1)

    @torch.inference_mode()
    def feature_of(self, given) -> Tensor:
        """(dim,) of unit length. given: a PIL image, a text, or a recording, (samples,) at the encoder's rate."""
        run, kind = self.run, self.modality
        if run.pairs_images_and_texts:
            found = run.pair.texts([given], 1) if isinstance(given, str) else run.pair.images([as_rgb(given)], 1)
            return found[0]
        processor = run.encoder.processor
        if kind == "image":
            batch = {"pixel_values": torch.from_numpy(decode(given, processor))[None]}
        elif kind == "text":
            batch = labelled.Texts([given], processor, LONGEST_TEXT).__getitems__([0])
        else:
            batch = labelled.Waves([given], processor).__getitems__([0])
        device = next(run.encoder.parameters()).device
        vector = run.encoder(**{name: value.to(device) for name, value in batch.items()})[0]
        return F.normalize(vector.float().cpu(), dim=0)

    def nearest(self, given, k: int) -> list[tuple[int, float]]:
        """[(row, cosine)], nearest first. given: a row, or what `feature_of` takes."""
        features, rows = self.features
        own = None
        if isinstance(given, int):
            if given not in rows:
                raise BadInput(f"row {given} could not be read, so it has no feature")
            own = rows.index(given)
        query = features[own] if own is not None else self.feature_of(given)
        return [(rows[i], value) for i, value in nearest(query, features, k, own)]

    def nearest_captions(self, feature: Tensor, k: int) -> list[tuple[str, float]]:
        """[(caption, cosine)], nearest first, each caption once."""
        texts, features = self.captions
        best: dict[str, float] = {}
        for row, value in nearest(feature, features, 4 * k):
            best.setdefault(texts[row], value)
        return list(best.items())[:k]

    # ------------------------------------------------------------ what is shown

    def image(self, row: int) -> Image.Image:
        """As stored, upright, in RGB. Raises BadInput if it cannot be read."""
        try:
            return as_rgb(self._stored[row][self.column])
        except Exception as error:  # decoders raise many kinds on a corrupt file
            raise BadInput(f"row {row} holds no image that can be read: {first_line(error)}") from error

    def text(self, row: int) -> str:
        return str(self.rows[row][self.column] or "")

    @made_once
    def sounds(self) -> list[np.ndarray | str]:
        """Of each row, (samples,) at the encoder's sampling rate, or a string that says what is wrong with it."""
        from mmssl.data.audio import waves

        return list(waves.read(self.rows, self.column, self.run.encoder.processor.sampling_rate, LONGEST_SOUND))

    @made_once
    def _stored(self):
        return undecoded(self.rows, self.column)

    def sample(self, n: int, seed: int = 0) -> list[int]:
        """Rows drawn without replacement, sorted."""
        drawn = np.random.default_rng(seed).permutation(len(self.rows))[:n]
        return sorted(drawn.tolist())

    @made_once
    def colours(self) -> dict[str, list]:
        """column -> its values as text, or as numbers if there are many: those that can colour a map."""
        import datasets

        found = {}
        for name, kind in self.rows.features.items():
            if name == self.column or not isinstance(kind, (datasets.Value, datasets.ClassLabel)):
                continue
            values = list(self.rows[name])
            if isinstance(kind, datasets.ClassLabel):
                found[name] = ["" if v is None or v < 0 else kind.int2str(v) for v in values]
            elif len(set(values)) <= CLASSES:
                found[name] = [str(v) for v in values]
            elif isinstance(values[0], (int, float)) and None not in values:
                found[name] = [float(v) for v in values]
        return found

    def about_row(self, row: int) -> str:
        """The caption and the classes of a row, in a few words."""
        caption = [_first(self.rows[row][self.caption_column])] if self.caption_column else []
        values = [str(values[row]) for values in self.colours.values()]
        return " · ".join(text if len(text) <= SHORT else f"{text[:SHORT]}…" for text in (*caption, *values) if text)


def _load(run: Run, modality: str) -> dict[str, datasets.Dataset]:
    if modality == "text" and documents.text_files(run.dataset):  # plain text: its documents are the rows
        train, test = documents.load(run.dataset, held_out=run.held_out or 1000)
        return {"train": train, "test": test} if run.held_out else {"train": train}
    if modality == "audio":
        from mmssl.data.audio import recordings

        return sources.load(run.dataset) if "," not in run.dataset else recordings.load(run.dataset)
    return sources.load(run.dataset, texts=modality == "text")


def _inside(run: Run, rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Without the rows whose file lies outside of the data."""
    import pyarrow as pa
    import pyarrow.compute as pc

    stored = rows.with_format("arrow")[:].column(column) if len(rows) else None
    if stored is None:
        raise BadInput(f"--dataset {run.dataset} has no rows")
    path = stored if pa.types.is_string(stored.type) else None
    if pa.types.is_struct(stored.type):
        path = pc.if_else(pc.is_null(pc.struct_field(stored, "bytes")), pc.struct_field(stored, "path"), None)
    if path is None:
        return rows
    shown = [row for row, name in enumerate(path.to_pylist()) if name is None or run.is_ours_to_show(name)]
    if left_out := len(rows) - len(shown):
        say(f"{left_out:,} of {len(rows):,} rows of {run.dataset} are not shown: they name files outside of it")
    if not shown:
        raise BadInput(f"--dataset {run.dataset} names only files outside of its folder, which are not shown")
    return rows.select(shown)


def _first(value: str | Sequence[str] | None) -> str:
    return value if isinstance(value, str) else str(value[0]) if value else ""


class _ImageHalf(encoders.Encoder):
    """Images in the space of an image-text model."""

    @classmethod
    def of(cls, run: Run) -> _ImageHalf:
        return cls(run.pair.model, run.pair.processor.image_processor, "image", "projection").eval()

    def forward(self, lengths: Tensor | None = None, **inputs: Tensor) -> Tensor:
        return self.model.get_image_features(**self._prepared(inputs)).pooler_output


class _TextHalf(encoders.Encoder):
    """Texts in the space of an image-text model."""

    @classmethod
    def of(cls, run: Run) -> _TextHalf:
        return cls(run.pair.model, run.pair.processor.tokenizer, "text", "projection").eval()

    def forward(self, lengths: Tensor | None = None, **inputs: Tensor) -> Tensor:
        return self.model.get_text_features(**inputs).pooler_output


class _Captions(Dataset):
    def __init__(self, texts: list[str], pair) -> None:
        self.texts, self.pair = texts, pair

    def __len__(self) -> int:
        return len(self.texts)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return dict(self.pair.tokens([self.texts[row] for row in rows]))
