"""Image and text features of saved checkpoints, computed with the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmssl.arguments import Flags, flag
from mmssl.data import sources
from mmssl.data.image_text import pairs
from mmssl.data.images.decoding import as_rgb, check_resized, undecoded
from mmssl.device import best_device
from mmssl.errors import BadInput, first_line
from mmssl.models import pretrained

if TYPE_CHECKING:
    import datasets


@dataclass
class CheckpointArgs(Flags):
    """Flags of every evaluation of a saved checkpoint."""

    model_name_or_path: str = flag("runs/clip", "a directory or a Hub id")
    dataset: str = flag("emoji", "a built-in name, file, folder or Hub id")
    held_out: int = flag(1000, "rows that the recipe held out, if the data has no test split; 0: all rows", at_least=0)
    max_samples: int = flag(0, "evaluate on the first n rows only; 0: on all", at_least=0)
    batch_size: int = flag(64, "images or texts at a time", at_least=1)
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")
    trust_remote_code: bool = flag(False, "run the code that comes with the checkpoint")

    def rows(self, image_column: str | None) -> datasets.Dataset:
        """The rows that the recipe evaluates on."""
        data = sources.load(self.dataset)
        images = pairs.image_column(data["train"], image_column)
        held_out = "test" in data or self.held_out
        rows = sources.split(data, self.held_out, together=images)[1] if held_out else data["train"]
        return rows.select(range(min(self.max_samples or len(rows), len(rows))))


def read_images(rows: datasets.Dataset, column: str) -> Iterator[Image.Image]:
    """The images in RGB. Raises BadInput, naming the row, if one cannot be decoded."""
    for number, image in enumerate(undecoded(rows, column)[column]):
        try:
            yield as_rgb(image)
        except Exception as error:  # decoders raise many kinds on a corrupt file
            raise BadInput(f"row {number}: no image could be read from {column}: {first_line(error)}") from error


class ImageTextEncoder:
    """Any checkpoint whose AutoModel has get_image_features and get_text_features."""

    def __init__(self, name: str, use_cpu: bool = False, trust_remote_code: bool = False) -> None:
        """Raises BadInput if `name` does not load, or is not an image–text model."""
        self.model, self.processor = pretrained.load(name, trust_remote_code)
        self.model.eval()
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise BadInput(f"--model_name_or_path {name}: a {type(self.model).__name__} is not an image–text model")
        self.device = best_device(use_cpu)
        self.model.to(self.device)
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token

    def images(self, images: Iterable[Image.Image], batch_size: int) -> Tensor:
        """RGB images -> (images, dim) float32, of unit length, on the CPU. Raises BadInput if a side is too long."""
        processor = self.processor.image_processor
        images = (_resizable(image, number, processor) for number, image in enumerate(images))
        batches = (processor(batch, return_tensors="pt") for batch in _batches(images, batch_size))
        return self._embed(self.model.get_image_features, batches)

    def texts(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """(texts, dim) float32, of unit length, on the CPU."""
        return self._embed(self.model.get_text_features, map(self.tokens, _batches(texts, batch_size)))

    def tokens(self, texts: list[str]):
        """The input of get_text_features, padded as in the model's training."""
        longest = getattr(self.model.config.text_config, "max_position_embeddings", None)
        padding = "max_length" if "siglip" in self.model.config.model_type else "longest"
        return self.processor.tokenizer(
            texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt"
        )

    @torch.no_grad()
    def _embed(self, function, batches: Iterable) -> Tensor:
        rows = [function(**batch.to(self.device)).pooler_output for batch in batches]
        return F.normalize(torch.cat(rows).float(), dim=-1).cpu()


def _resizable(image: Image.Image, number: int, processor) -> Image.Image:
    try:
        check_resized(image.size, processor)
    except BadInput as error:
        raise BadInput(f"image {number} {error}") from error
    return image


def _batches(items: Iterable, n: int) -> Iterable[list]:
    items = iter(items)
    while batch := list(islice(items, n)):
        yield batch
