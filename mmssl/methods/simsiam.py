"""SimSiam: predict, from one view of an image, what the same network says of the other view, which counts as given.

Chen & He 2020, arXiv:2011.10566. An encoder, a projection and a predictor with a narrow middle; no negatives, no
momentum encoder. Without the predictor, or with a gradient through the target, all images get one feature (sections 4.1
and 4.2). Differs: the batch norms' batch is that of all processes.
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
    encoder:        of images, see models.image_encoders.
    views:          two of each image.
    projection_dim: width of the projection, outer width of the predictor.
    hidden_dim:     of the predictor, narrower: a quarter in the paper.
    layers:         of the projection: 2 for small images (appendix D), else 3.
    norm:           of the heads, see models.heads. Without batch statistics there it collapses easily.
    """

    couples_samples = True  # by the heads' batch norms
    unit = "images"
    card = Card(
        about="SimSiam: predict, from one view of an image, what the same network says of the other view. The encoder "
        "is exported; projection and predictor, to continue from, are under `pretraining/`.",
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
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, what an image's views are drawn from."""
        rows = {}
        for i, view in enumerate(self.views(pixel_values, key), start=1):
            z = self.projection(image_encoders.features(self.encoder, view))
            rows |= {f"p{i}": self.predictor(z).float(), f"z{i}": z.float()}
        return rows

    def loss(self, p1: Tensor, z1: Tensor, p2: Tensor, z2: Tensor) -> Output:
        """Predictions and projections of both views, each (batch, projection_dim)."""
        with torch.autocast(z1.device.type, enabled=False):
            loss = distance(p1, z2) / 2 + distance(p2, z1) / 2
        # section 4.1 tells a collapse by the spread of z; batch norms keep a ResNet's features apart even then
        return Output(loss, features=z1.detach())

    def exported(self) -> PreTrainedModel:
        return self.encoder
