"""MoCo: match a view of an image to its other view among thousands of other images, which are kept in a queue.

He et al. 2019, arXiv:1911.05722 (v1); Chen et al. 2020, arXiv:2003.04297 (v2: a head of two layers, more augmentation).
The queue holds the keys of earlier batches, made by a key encoder that follows the query encoder slowly, so that they
stay comparable. Differs: in v1 each GPU takes other samples of a batch for the keys than for the queries, because the
statistics of a common batch would give a pair away (section 3.3). Here the key encoder normalises with running
statistics, a moving average of the query encoder's, as its weights are (EMAN, Cai et al. 2021, arXiv:2101.08482).
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
from mmssl.models import ema, heads, image_encoders, memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def info_nce(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, within_batch: bool = False
) -> tuple[Tensor, Tensor]:
    """v1's equation 1, averaged over this process's images: (loss, fraction of queries whose key is more similar to
    them than every negative).

    query, key: (batch, dim); row i of both shows the same image. queue: (K, dim), the negatives. All of unit length.
    within_batch: the keys of the other images of the batch are negatives, too.
    """
    similarity = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / temperature
    if within_batch:
        others = (query @ key.T / temperature).fill_diagonal_(-torch.inf)
        similarity = torch.cat([similarity, others], dim=1)
    found = (similarity[:, 0] > similarity[:, 1:].amax(1)).float().mean()
    return F.cross_entropy(similarity, similarity.new_zeros(len(query), dtype=torch.long)), found.detach()


class MoCo(Method):
    """
    encoder:     an image encoder, see models.image_encoders; it becomes the query encoder.
    views:       two views of each image: one for the query, one for the key.
    layers:      layers of the head: 2 in v2, 1 in v1.
    queue_size:  number of keys of earlier images that a query is compared with. Until the queue has filled, it holds
                 random directions, which are easy to tell apart: the first losses are lower than later ones. So an
                 evaluation also compares a query with the keys of the batch's other images.
    temperature: 0.2 in v2, 0.07 in v1.
    momentum:    of the key encoder's moving average; 0.999 for long runs.
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="MoCo: match a view of an image to its other view among a queue of other images. The query encoder is "
        "exported; the key encoder, the heads and the queue, to continue from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="chance: log(1 + queue)",
        snippets=image_encoders.SNIPPETS,
        tags=("moco", "contrastive"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        projection_dim: int = 128,
        layers: int = 2,
        queue_size: int = 4096,
        temperature: float = 0.2,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.temperature, self.momentum = encoder, views, temperature, momentum
        self.projection = heads.mlp([image_encoders.width(encoder)] * layers + [projection_dim], norm="none")
        self.key_encoder, self.key_projection = ema.teacher_of(encoder).eval(), ema.teacher_of(self.projection)
        sizes = f"--queue_size {queue_size}, --projection_dim {projection_dim}"
        memory.refuse_too_large(queue_size * projection_dim, sizes)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, projection_dim), dim=1))

    def train(self, mode: bool = True) -> MoCo:
        super().train(mode)
        self.key_encoder.eval()  # no statistics of the batch, see above
        return self

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        first, second = self.views(pixel_values, key)
        features = image_encoders.features(self.encoder, first)
        q = F.normalize(self.projection(features).float(), dim=1)
        with torch.no_grad():
            k = F.normalize(self.key_projection(image_encoders.features(self.key_encoder, second)).float(), dim=1)
        return {"query": q, "key": k, "features": features}

    def loss(self, query: Tensor, key: Tensor, features: Tensor) -> Output:
        """query, key: (batch, projection_dim), of unit length. features: (batch, width) of the query's views."""
        key = key.detach()
        with torch.autocast(query.device.type, enabled=False):
            loss, found = info_nce(query, key, self.queue, self.temperature, within_batch=not self.training)
        keys = len(self.queue) + (1 if self.training else len(key))
        if self.training:  # after the loss is taken: the positive is not among the negatives
            newest = gather(key)
            # a new tensor: backward needs the queue as it was
            self.queue = torch.cat([self.queue[len(newest) :], newest[-len(self.queue) :]])
        return Output(loss, {"key_found": found}, features.detach().float(), math.log(keys))

    def after_step(self) -> None:
        ema.update(self.key_encoder, self.encoder, self.momentum)
        ema.update(self.key_projection, self.projection, self.momentum)

    def exported(self) -> PreTrainedModel:
        return self.encoder
