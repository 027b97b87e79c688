"""MoCo v3: match each view of an image to the momentum encoder's embedding of the other view, within the batch.

Chen et al. 2021, arXiv:2104.02057: MoCo without a queue, for large batches and for ViTs. A predictor on the
side of the gradient, a symmetric loss, a momentum that grows to 1 and, for stability, a ViT whose patch projection is
not trained (section 4.2). Differs: keys and batch statistics are those of all processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.images.views import Views
from mmssl.distributed import gather, rank
from mmssl.method import Card, Method, Output
from mmssl.models import ema, heads, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def contrast(query: Tensor, key: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE (equation 1) times 2 * temperature, as in algorithm 1, averaged over this process's images: (loss,
    fraction of queries whose most similar key is their own).

    query, key: (batch, dim), of unit length; row i of both shows the same image. Keys are those of all processes.
    """
    similarity = query @ gather(key).T / temperature
    own = torch.arange(len(query), device=query.device) + rank() * len(query)
    found = (similarity.argmax(1) == own).float().mean()
    return 2 * temperature * F.cross_entropy(similarity, own), found.detach()


class MoCoV3(Method):
    """
    encoder:        an image encoder, see models.image_encoders.
    views:          two views of each image.
    hidden_dim:     width of the hidden layers of the heads.
    projection_dim: dimension of the projections that are compared.
    momentum:       of the momentum encoder's moving average at the first step; it grows to 1.
    freeze_patches: do not train the patch projection of a ViT.
    norm:           norm of the heads, see models.heads.
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="MoCo v3: match each view of an image to the momentum encoder's embedding of the other view. The encoder "
        "that learns by gradient is exported; the momentum encoder and the heads, to continue from, are in "
        "`pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="chance: 4 temperature log(batch)",
        snippets=image_encoders.SNIPPETS,
        tags=("moco-v3", "contrastive"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        hidden_dim: int = 1024,
        projection_dim: int = 256,
        temperature: float = 0.2,
        momentum: float = 0.99,
        freeze_patches: bool = True,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.temperature, self.momentum = encoder, views, temperature, momentum
        if freeze_patches:
            image_encoders.freeze_patches(encoder)
        widths = [image_encoders.width(encoder), hidden_dim, hidden_dim, projection_dim]
        self.projection = heads.mlp(widths, norm, last_norm=True)
        self.predictor = heads.mlp([projection_dim, hidden_dim, projection_dim], norm, last_norm=True)
        self.momentum_encoder, self.momentum_projection = ema.teacher_of(encoder), ema.teacher_of(self.projection)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        rows = {}
        for i, view in enumerate(self.views(pixel_values, key), start=1):
            features = image_encoders.features(self.encoder, view)
            rows[f"q{i}"] = F.normalize(self.predictor(self.projection(features)).float(), dim=1)
            with torch.no_grad():
                target = self.momentum_projection(image_encoders.features(self.momentum_encoder, view))
                rows[f"k{i}"] = F.normalize(target.float(), dim=1)
        return {**rows, "features": features}

    def loss(self, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, features: Tensor) -> Output:
        """q, k: (batch, projection_dim), of unit length. features: (batch, width) of the second views."""
        with torch.autocast(q1.device.type, enabled=False):
            (one, found), (other, found_too) = (
                contrast(q, k.detach(), self.temperature) for q, k in ((q1, k2), (q2, k1))
            )
        chance = 4 * self.temperature * math.log(len(gather(k1.detach())))
        return Output(one + other, {"key_found": (found + found_too) / 2}, features.detach().float(), chance)

    def after_step(self) -> None:
        share = ema.momentum(self.momentum, self.progress)
        ema.update(self.momentum_encoder, self.encoder, share)
        ema.update(self.momentum_projection, self.projection, share)

    def exported(self) -> PreTrainedModel:
        return self.encoder
