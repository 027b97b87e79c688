"""BYOL: from one view of an image, predict the embedding that a moving average of the network gives to the other view.

Grill et al. 2020, arXiv:2006.07733. An online network of encoder, projection and predictor; a target network of encoder
and projection, whose weights are a moving average of the online ones. No negatives: without the predictor, or with a
gradient through the target, all images may get the same feature. Differs: batch norms take their statistics
over all processes.
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
    encoder:        an image encoder, see models.image_encoders; it becomes the online encoder.
    views:          two views of each image.
    hidden_dim:     width of the hidden layers of projection and predictor. projection_dim: width of their outputs.
    momentum:       of the target's moving average at the first step; it grows to 1. 0.996 for long runs.
    norm:           norm of the heads, see models.heads. Without batch statistics in them, BYOL collapses easily.
    """

    unit = "images"
    card = Card(
        about="BYOL: from one view of an image, predict the embedding that a moving average of the network gives to "
        "the other view. The online encoder is exported; the target encoder and the heads, to continue from, are in "
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
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
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
        # the projections are watched: batch norms keep a ResNet's features apart even when all projections are equal
        return Output(loss, features=projection.detach())

    def after_step(self) -> None:
        share = ema.momentum(self.momentum, self.progress)
        ema.update(self.target_encoder, self.encoder, share)
        ema.update(self.target_projection, self.projection, share)

    def exported(self) -> PreTrainedModel:
        return self.encoder
