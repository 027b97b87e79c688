"""VICReg: make two views' embeddings equal while every dimension keeps its variance and none correlate.

Bardes et al. 2021, arXiv:2105.04906: variance, invariance, covariance. Embeddings are not normalised, and only views of
one image are compared; a hinge on each dimension's standard deviation prevents collapse, the covariance term prevents
redundant dimensions.
Invariance is averaged over dimensions, as in algorithm 1, not summed, as in equation 5. Differs: the batch is that of
all processes, and gathered embeddings carry gradients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.images.views import Views
from mmssl.distributed import gather
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GAMMA, EPS = 1.0, 1e-4  # target standard deviation of a dimension; section 4.2


def variance(z: Tensor) -> Tensor:
    """Equation 1: how far the standard deviation of each dimension of (batch, dim) is below GAMMA, on average."""
    return F.relu(GAMMA - (z.var(0) + EPS).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Equations 3 and 4: sum of the squared covariances of different dimensions of (batch, dim), divided by dim."""
    z = z - z.mean(0)
    matrix = z.T @ z / (len(z) - 1)
    return (matrix - torch.diag_embed(matrix.diagonal())).square().sum() / z.shape[1]


class VICReg(Method):
    """
    encoder:        an image encoder, see models.image_encoders.
    views:          two views of each image.
    projection_dim: width of the head's three layers.
    invariance, variance, covariance: lambda, mu and nu, the weights of the terms.
    norm:           norm of the head, see models.heads.
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="VICReg: make two views' embeddings equal while every dimension keeps its variance and none correlate. "
        "The encoder is exported; the projection head, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="one embedding for all images",
        snippets=image_encoders.SNIPPETS,
        tags=("vicreg",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        projection_dim: int = 2048,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.encoder, self.views = encoder, views
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        # a last bias would shift both views equally: no term depends on it
        self.projection = heads.mlp([image_encoders.width(encoder)] + [projection_dim] * 3, norm, last_bias=False)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        first, second = (
            self.projection(image_encoders.features(self.encoder, view)).float()
            for view in self.views(pixel_values, key)
        )
        return {"first": first, "second": second}

    def loss(self, first: Tensor, second: Tensor) -> Output:
        """Equation 6. first, second: (batch, projection_dim), of the two views."""
        watched = first.detach()
        first, second = gather(first), gather(second)
        with torch.autocast(first.device.type, enabled=False):
            terms = {
                "invariance": F.mse_loss(first, second),
                "variance": variance(first) + variance(second),
                "covariance": covariance(first) + covariance(second),
            }
            loss = sum(self.weights[name] * term for name, term in terms.items())
        constant = 2 * self.weights["variance"] * (GAMMA - math.sqrt(EPS))  # one embedding for all images
        return Output(loss, {k: v.detach() for k, v in terms.items()}, watched, constant)

    def exported(self) -> PreTrainedModel:
        return self.encoder
