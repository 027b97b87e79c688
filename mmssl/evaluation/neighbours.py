"""The method's own loss on held-out images; figures of their nearest neighbours and of a ViT's class attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import figures
from mmssl.data.images.decoding import normalisation
from mmssl.evaluation import class_attention
from mmssl.evaluation.held_out import Columns, HeldOut
from mmssl.models import image_encoders, vit_tokens

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

    from mmssl.data.images.pictures import Pictures
    from mmssl.method import Method

SEARCHED = 2000  # held-out images, at most
QUERIES, SHOWN = 8, 6  # images, and neighbours of each


class Neighbours(HeldOut):
    """
    held_out:  images.
    processor: that of the exported encoder.
    copies:    for a task that only training images have, new augmented copies of them; the loss and the metrics are
               then taken on these.
    task:      caption of a figure of the method's own task on held-out images, if it has one. The columns are what
               `method.shown(pixel_values, key)` returns: title -> (images, 3, height, width) in [0, 1].
    chance:    see HeldOut.
    """

    def __init__(
        self,
        held_out: Pictures,
        processor,
        batch_size: int,
        copies: Dataset | None = None,
        task: str = "",
        chance: dict[str, float] | None = None,
    ) -> None:
        super().__init__(held_out if copies is None else copies, batch_size, chance)
        self.pictures, self.processor, self.task = held_out, processor, task
        if copies is not None:
            self.units = "Loss and metrics of the method's own task, on new augmented copies of training images."

    @torch.no_grad()
    def draw(self, method: Method, directory: Path, results: Columns) -> dict[str, str]:
        encoder, pictures = method.exported(), self.pictures
        rows = pictures.sample(min(SEARCHED, len(pictures)))
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in normalisation(self.processor))
        device, features = next(encoder.parameters()).device, []
        of_patches = method.card.snippets is image_encoders.SNIPPETS_OF_PATCHES  # its class token is not trained
        read = patches_mean if of_patches else image_encoders.features
        for chunk in rows.split(128):
            pixels = (pictures.pixels[chunk].float() / 255 - mean) / std
            features.append(read(encoder, pixels.to(device)).float().cpu())
        unit = F.normalize(torch.cat(features), dim=1)
        asked = torch.linspace(0, len(rows) - 1, min(QUERIES, len(rows))).long()
        similarity = unit[asked] @ unit.T
        similarity[torch.arange(len(asked)), asked] = -2.0  # an image is not its own neighbour
        nearest = similarity.topk(min(SHOWN, len(rows) - 1))[1]
        images = pictures.pixels[rows]
        columns = {"image": images[asked]} | {str(i + 1): images[nearest[:, i]] for i in range(nearest.shape[1])}
        shown = {name: pixels.float() / 255 for name, pixels in columns.items()}
        figures.picture_grid(shown, directory / "neighbours.png")
        caption = f"Held-out images and the nearest of {len(rows):,} by the cosine of their features, nearest first."
        drawn = {"neighbours.png": caption}
        if self.task:
            batch = pictures.__getitems__(torch.linspace(0, len(pictures) - 1, len(asked)).long().tolist())
            columns = method.shown(batch["pixel_values"].to(device), batch["key"].to(device))
            figures.picture_grid({name: each.float().cpu() for name, each in columns.items()}, directory / "task.png")
            drawn = {"task.png": self.task} | drawn
        if not of_patches and vit_tokens.has_square_grid(encoder):
            pixels = ((images[asked].float() / 255 - mean) / std).to(device)
            drawn["attention.png"] = class_attention.draw(encoder, pixels, shown["image"], directory / "attention.png")
        return drawn


def patches_mean(encoder: PreTrainedModel, pixels: Tensor) -> Tensor:
    """(batch, width). pixels: (batch, 3, height, width), normalised."""
    return image_encoders.maps(encoder, pixels).mean((2, 3))
