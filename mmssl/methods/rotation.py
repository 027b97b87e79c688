"""Rotation prediction (RotNet): turn an image by 0, 90, 180 or 270 degrees, and tell by how much.

Gidaris et al. 2018, arXiv:1803.07728, section 3. An encoder and a linear classifier of four classes; cross entropy. All
four rotations of an image are in the batch (section 3.2, "implementation details"). A turn by a multiple of 90 degrees
only moves pixels: it leaves no trace of interpolation by which the network could tell (section 3.1). Differs: the
classifier sees the mean over positions, as the exported encoder gives it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TURNS = 4  # quarter turns, counterclockwise: the classes


def rotations(pixels: Tensor) -> Tensor:
    """(batch, 3, side, side) -> (batch, 4, 3, side, side): each image turned by 0 to 3 quarter turns. Raises BadInput
    if the images are not square."""
    if pixels.shape[2] != pixels.shape[3]:
        raise BadInput(
            f"images of {pixels.shape[2]} x {pixels.shape[3]} pixels: their shape tells a quarter turn; use an "
            "--image_size, or a checkpoint whose processor leaves square images"
        )
    return torch.stack([torch.rot90(pixels, turns, (2, 3)) for turns in range(TURNS)], dim=1)


class Rotation(Method):
    """
    encoder: an image encoder, see models.image_encoders.
    views:   one view of each image, in training.
    """

    unit = "images"
    card = Card(
        about="Rotation prediction (RotNet): each image is turned by 0, 90, 180 and 270 degrees, and the network tells "
        "by how much. The encoder is exported; the classifier of rotations, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained without labels, to tell how images are turned: it learns little from images "
        "without an upright position. Evaluate it on your task before you rely on it.",
        trivial="chance: log(4)",
        snippets=image_encoders.SNIPPETS,
        tags=("rotnet", "rotation"),
    )

    def __init__(self, encoder: PreTrainedModel, views: Views) -> None:
        super().__init__()
        self.encoder, self.views = encoder, views
        self.classifier = nn.Linear(image_encoders.width(encoder), TURNS)

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view is drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        features = image_encoders.features(self.encoder, rotations(pixels).flatten(0, 1))
        logits = self.classifier(features)
        true = torch.arange(TURNS, device=logits.device).repeat(len(pixels))
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits.float(), true)
        found = (logits.argmax(1) == true).float().mean().detach()
        upright = features.detach().float()[::TURNS]
        return Output(loss, {"accuracy": found}, upright, math.log(TURNS))

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Each image, turned by a draw from its key, and turned back by the prediction. Arguments as in `forward`."""
        pixels = self.views.whole(pixel_values)
        turns = (TURNS * draws.uniform(key, STREAMS_PER_VIEW)).long()
        turned = rotations(pixels)[torch.arange(len(pixels)), turns]
        predicted = self.classifier(image_encoders.features(self.encoder, turned)).argmax(1)
        back = rotations(turned)[torch.arange(len(pixels)), -predicted % TURNS]
        columns = {"image": pixels, "turned": turned, "turned back": back}
        return {title: self.views.to_unit_range(column) for title, column in columns.items()}

    def exported(self) -> PreTrainedModel:
        return self.encoder
