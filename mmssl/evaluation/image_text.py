"""Evaluation of image–text models on held-out pairs: retrieval and, if there are labels, zero-shot classification.
Called by the loop; retrieval.py and zero_shot.py are commands for saved checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmssl import figures
from mmssl.data.image_text.pairs import Pairs
from mmssl.data.text.tokens import Tokens
from mmssl.evaluation import zero_shot
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.evaluation.retrieval import chance, retrieval
from mmssl.methods.clip import CLIP


@dataclass
class Classes:
    """A zero-shot task: labels, (rows,) of the held-out rows, and each class's names in ordinary words."""

    label: Tensor
    names: Mapping[str, Sequence[str]]
    templates: Sequence[str]


class ImageTextEvaluation(Evaluation):
    """held_out: tokenised pairs; all their captions are used."""

    BATCH = 128
    units = "In per cent; ranks count from 1, the best."

    def __init__(self, held_out: Pairs, tokenizer, max_length: int, classes: Classes | None = None) -> None:
        self.pairs, self.tokenizer, self.max_length, self.classes = held_out, tokenizer, max_length, classes
        self.label = classes.label[held_out.rows] if classes else None
        self.owner = torch.repeat_interleave(torch.arange(len(held_out)), held_out.first.diff())

    def __call__(self, method: CLIP) -> dict[str, float]:
        image, text = self.images(method), self.texts(method, self.pairs.tokens)
        values = retrieval(image, text, self.owner)
        if self.classes:
            centres = zero_shot.class_embeddings(
                lambda texts: self.texts(method, Tokens(texts, self.tokenizer, self.max_length)),
                self.classes.names,
                self.classes.templates,
            )
            values |= zero_shot.zero_shot(image, centres, self.label)
        return values

    def baselines(self, method: CLIP) -> Columns:
        values = chance(len(self.pairs), self.owner)
        return {"chance": values | (zero_shot.chance(self.label, len(self.classes.names)) if self.classes else {})}

    @torch.no_grad()
    def images(self, method: CLIP) -> Tensor:
        """(images, dim), of unit length, on the CPU."""
        device = method.model.device
        batches = (self.pairs.pixels[rows] for rows in self.pairs.rows.split(self.BATCH))
        return torch.cat([method.embed_image(pixels.to(device)).cpu() for pixels in batches])

    @torch.no_grad()
    def texts(self, method: CLIP, tokens: Tokens) -> Tensor:
        """(texts, dim), of unit length, on the CPU."""
        batches = (tokens[rows] for rows in torch.arange(len(tokens)).split(self.BATCH))
        device = method.model.device
        return torch.cat([method.embed_text(**{k: v.to(device) for k, v in b.items()}).cpu() for b in batches])

    def draw(self, method: CLIP, directory: Path, results: Columns, queries: int = 8, shown: int = 5) -> dict[str, str]:
        """The retrieval grid and the similarity matrix of held-out pairs from all over the data. {file: caption}."""
        image, text = self.images(method), self.texts(method, self.pairs.tokens)
        text = text[self.pairs.first[:-1]]  # the first caption of each image
        rows = self.spread(queries)
        captions = [self.pairs.captions[row][0] for row in rows]
        grid, matrix = directory / "retrieval.png", directory / "similarity.png"
        pixels = self.pairs.__getitems__(list(range(len(image))))["pixel_values"]
        figures.retrieval_grid(pixels, captions, rows.tolist(), text[rows] @ image.T, grid, shown)
        rows = self.spread(50)
        figures.similarity_matrix(image[rows] @ text[rows].T, matrix)
        return {
            grid.name: f"Held-out texts and the {shown} nearest of {len(image):,} held-out images; the true one "
            "is framed.",
            matrix.name: f"Cosine similarity of {len(rows)} held-out images and texts; pairs are on the diagonal.",
        }

    def example(self) -> dict[str, Tensor | list[str]]:
        """A few pairs as inputs for the processor."""
        rows = self.spread(3)
        pixels = self.pairs.__getitems__(rows.tolist())["pixel_values"]
        return {"text": [self.pairs.captions[row][0][:60] for row in rows], "images": pixels}

    def spread(self, n: int) -> Tensor:
        """(n,) int64: images evenly spaced over the data, because neighbours in a data set are often similar."""
        return torch.linspace(0, len(self.pairs) - 1, min(n, len(self.pairs))).long()
