"""SimSiam: from one view of an image, predict the network's own embedding of the other view, with a stop-gradient.

Chen & He 2020, arXiv:2011.10566. An encoder, a projection and a predictor with a bottleneck; no negatives, no
momentum encoder. Without the predictor, or with a gradient through the target, all images get the same feature
(sections 4.1 and 4.2). Differs: batch norms take their statistics over all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.images.views import Views
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def distance(p: Tensor, z: Tensor) -> Tensor:
    """Equation 1: the negative cosine of a prediction and what it predicts, averaged over rows; z gets no gradient.

    Both: (batch, dim).
    """
    return -F.cosine_similarity(p, z.detach()).mean()


class SimSiam(Method):
    """
    encoder:        an image encoder, see models.image_encoders.
    views:          two views of each image.
    projection_dim: dimension of projections and predictions.
    hidden_dim:     width of the predictor's bottleneck; in the paper a quarter of projection_dim.
    layers:         layers of the projection: 2 for small images (appendix D), else 3.
    norm:           norm of the heads, see models.heads. Without batch statistics in them, SimSiam collapses easily.
    """

    unit = "images"
    card = Card(
        about="SimSiam: from one view of an image, predict the network's own embedding of the other view. The encoder "
        "is exported; projection and predictor, to continue from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        snippets=image_encoders.SNIPPETS,
        tags=("simsiam",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        projection_dim: int = 2048,
        hidden_dim: int = 512,
        layers: int = 2,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.encoder, self.views = encoder, views
        widths = [image_encoders.width(encoder)] + [projection_dim] * layers
        self.projection = heads.mlp(widths, norm, last_norm=True)
        self.predictor = heads.mlp([projection_dim, hidden_dim, projection_dim], norm)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        rows = {}
        for i, view in enumerate(self.views(pixel_values, key), start=1):
            z = self.projection(image_encoders.features(self.encoder, view))
            rows |= {f"p{i}": self.predictor(z).float(), f"z{i}": z.float()}
        return rows

    def loss(self, p1: Tensor, z1: Tensor, p2: Tensor, z2: Tensor) -> Output:
        """Predictions and projections of both views, each (batch, projection_dim)."""
        with torch.autocast(z1.device.type, enabled=False):
            loss = distance(p1, z2) / 2 + distance(p2, z1) / 2
        # z is watched, as in section 4.1: batch norms keep a ResNet's features apart even when all z are equal
        return Output(loss, features=z1.detach())

    def exported(self) -> PreTrainedModel:
        return self.encoder
