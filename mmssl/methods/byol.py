"""BYOL: predict, from one view of an image, what a slowly moving copy of the network says of the other view.

Grill et al. 2020, arXiv:2006.07733. An online network of encoder, projection and predictor; a target network of encoder
and projection, whose weights are a moving average of the online ones. No negatives: without the predictor, or with a
target that learns, all images may get one feature. Differs: the batch norms' batch is that of all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.images.views import Views
from mmssl.method import Card, Method, Output
from mmssl.models import ema, heads, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 2: squared distance of the normalised, 2 - 2 cos, averaged over rows. Both: (batch, dim)."""
    return 2 - 2 * F.cosine_similarity(prediction, target).mean()


class BYOL(Method):
    """
    encoder:        of images, see models.image_encoders: the online encoder.
    views:          two of each image.
    hidden_dim:     inner width of projection and predictor. projection_dim: their outer width.
    momentum:       share of itself that the target keeps at the first step; it grows to 1. 0.996 for long runs.
    norm:           of the heads, see models.heads. Without batch statistics there it collapses easily.
    """

    couples_samples = True  # by the heads' batch norms
    unit = "images"
    card = Card(
        about="BYOL: predict, from one view of an image, what a slowly moving copy of the network says of the other "
        "view. The online encoder is exported; the target encoder and the heads, to continue from, are under "
        "`pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        snippets=image_encoders.SNIPPETS,
        tags=("byol",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        hidden_dim: int = 1024,
        projection_dim: int = 256,
        momentum: float = 0.99,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.momentum = encoder, views, momentum
        self.projection = heads.mlp([image_encoders.width(encoder), hidden_dim, projection_dim], norm)
        self.predictor = heads.mlp([projection_dim, hidden_dim, projection_dim], norm)
        self.target_encoder, self.target_projection = ema.teacher_of(encoder), ema.teacher_of(self.projection)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, what an image's views are drawn from."""
        rows = {}
        for i, view in enumerate(self.views(pixel_values, key), start=1):
            projection = self.projection(image_encoders.features(self.encoder, view))
            rows[f"prediction{i}"] = self.predictor(projection).float()
            with torch.no_grad():
                rows[f"target{i}"] = self.target_projection(image_encoders.features(self.target_encoder, view)).float()
        return {**rows, "projection": projection.float()}

    def loss(
        self, prediction1: Tensor, target1: Tensor, prediction2: Tensor, target2: Tensor, projection: Tensor
    ) -> Output:
        """All: (batch, projection_dim). projection: of the second views, online."""
        with torch.autocast(projection.device.type, enabled=False):
            loss = regression(prediction1, target2.detach()) + regression(prediction2, target1.detach())
        # watched for collapse: batch norms keep a ResNet's features apart even where all projections are the same
        return Output(loss, features=projection.detach())

    def after_step(self) -> None:
        share = ema.momentum(self.momentum, self.progress)
        ema.update(self.target_encoder, self.encoder, share)
        ema.update(self.target_projection, self.projection, share)

    def exported(self) -> PreTrainedModel:
        return self.encoder
