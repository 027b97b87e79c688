"""Barlow Twins: make each dimension of two views' embeddings correlate with itself and with no other dimension.

Zbontar et al. 2021, arXiv:2103.03230. The loss pulls the cross-correlation matrix of the two embeddings over a batch
towards the identity: the diagonal makes them invariant to the view, the rest prevents redundancy and collapse.
Differs: the batch is that of all processes, and gathered embeddings carry gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.data.images.views import Views
from mmssl.distributed import gather
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EPS = 1e-5  # added to a variance, as a batch norm does


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Equation 2: (dim, dim) of two (batch, dim); dimensions are centred, and of unit variance, over the batch."""
    first, second = ((z - z.mean(0)) * torch.rsqrt(z.var(0, correction=0) + EPS) for z in (first, second))
    return first.T @ second / len(first)


def redundancy(correlation: Tensor, off_diagonal: float) -> tuple[Tensor, Tensor]:
    """The terms of equation 1: sum of (1 - C_ii)^2; `off_diagonal` (lambda) times the sum of C_ij^2 of all others."""
    diagonal = correlation.diagonal()
    others = correlation - torch.diag_embed(diagonal)
    return (1 - diagonal).square().sum(), off_diagonal * others.square().sum()


class BarlowTwins(Method):
    """
    encoder:        an image encoder, see models.image_encoders.
    views:          two views of each image.
    projection_dim: width of the head's three layers; a wide head helps more than in other methods (section 4.2).
    off_diagonal:   lambda, the weight of the off-diagonal terms.
    norm:           norm of the head, see models.heads.
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="Barlow Twins: the cross-correlation of two views' embeddings is pulled towards the identity. The "
        "encoder is exported; the projection head, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="one embedding for all images",
        snippets=image_encoders.SNIPPETS,
        tags=("barlow-twins",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        projection_dim: int = 2048,
        off_diagonal: float = 0.005,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.off_diagonal = encoder, views, off_diagonal
        # the loss centres each dimension: a last bias would have no effect
        self.projection = heads.mlp([image_encoders.width(encoder)] + [projection_dim] * 3, norm, last_bias=False)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        first, second = (
            self.projection(image_encoders.features(self.encoder, view)).float()
            for view in self.views(pixel_values, key)
        )
        return {"first": first, "second": second}

    def loss(self, first: Tensor, second: Tensor) -> Output:
        """first, second: (batch, projection_dim), of the two views."""
        with torch.autocast(first.device.type, enabled=False):
            variant, redundant = redundancy(cross_correlation(gather(first), gather(second)), self.off_diagonal)
        terms = {"invariance": variant.detach(), "redundancy": redundant.detach()}
        return Output(variant + redundant, terms, first.detach(), trivial_loss=float(first.shape[1]))

    def exported(self) -> PreTrainedModel:
        return self.encoder
