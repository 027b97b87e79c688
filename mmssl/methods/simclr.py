"""SimCLR: make two views of an image more similar than views of different images.

Chen et al. 2020, arXiv:2002.05709. An encoder and a projection head; NT-Xent (equation 1) over all 2N views of a batch;
the head is discarded afterwards. Differs: views are drawn per image, not per batch; the batch is that of all processes,
and gathered views carry gradients.
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
from mmssl.models import heads, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(loss, accuracy): equation 1, averaged over this process's views, and the fraction of views whose most similar
    view is their partner. Negatives come from all processes.

    first, second: (batch, dim), of unit length; row i of both shows the same image.
    """
    mine, everyone = torch.cat([first, second]), torch.cat([gather(first), gather(second)])
    n, images = len(first), len(everyone) // 2
    row = torch.arange(n, device=first.device) + rank() * n
    itself, partner = torch.cat([row, row + images]), torch.cat([row + images, row])
    similarity = mine @ everyone.T / temperature
    similarity = similarity.scatter(1, itself[:, None], -torch.inf)
    found = (similarity.argmax(1) == partner).float().mean()
    return F.cross_entropy(similarity, partner), found.detach()


class SimCLR(Method):
    """
    encoder:        an image encoder, see models.image_encoders.
    views:          two views of each image.
    projection_dim: dimension of the projections that are compared.
    temperature:    of the softmax; the paper uses 0.5 for CIFAR-10 (appendix B.9).
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="SimCLR: make two augmented views of an image more similar than views of different images. The encoder "
        "is exported; the projection head, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="chance: log(2 batch - 1)",
        snippets=image_encoders.SNIPPETS,
        tags=("simclr", "contrastive"),
    )

    def __init__(
        self, encoder: PreTrainedModel, views: Views, projection_dim: int = 128, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.temperature = encoder, views, temperature
        width = image_encoders.width(encoder)
        self.projection = heads.mlp([width, width, projection_dim], norm="none")

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        first, second = self.views(pixel_values, key)
        features = image_encoders.features(self.encoder, torch.cat([first, second]))  # h
        z = F.normalize(self.projection(features).float(), dim=1)
        n = len(pixel_values)
        return {"first": z[:n], "second": z[n:], "features": features[:n]}

    def loss(self, first: Tensor, second: Tensor, features: Tensor) -> Output:
        """first, second: (batch, projection_dim), of unit length. features: (batch, width) of the first views."""
        with torch.autocast(first.device.type, enabled=False):
            loss, found = nt_xent(first, second, self.temperature)
        views = 2 * len(gather(first.detach()))
        return Output(loss, {"partner_found": found}, features.detach().float(), trivial_loss=math.log(views - 1))

    def exported(self) -> PreTrainedModel:
        return self.encoder
