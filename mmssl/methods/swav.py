"""SwAV: predict from one view of an image the cluster assignment of another view.

Caron et al. 2020, arXiv:2006.09882. Views are compared with prototypes that are learned; the targets are assignments of
the batch's large views to the prototypes such that all prototypes are used equally (Sinkhorn-Knopp), which prevents
collapse. All views of an image, small ones too, predict the target of each of its other large views. Differs: the
assignment is over the batches of all processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.images.views import Views
from mmssl.distributed import gather
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders, memory
from mmssl.models.self_distillation import between_views, sinkhorn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SwAV(Method):
    """
    encoder:        an image encoder, see models.image_encoders.
    views:          of each image, the large views first, as of views.multi_crop.
    large_views:    number of large views, whose assignments are the targets.
    prototypes:     number of prototypes. hidden_dim, projection_dim: widths of the projection head.
    temperature:    of the predictions. epsilon, iterations: of Sinkhorn-Knopp.
    freeze_prototypes_fraction: of the training, its beginning, in which the prototypes are not trained.
    queue_size:     number of earlier images that are assigned together with the batch, for batches that are smaller
                    than the number of prototypes (section 4.1); 0: none. They count once the queue is full.
    norm:           norm of the head, see models.heads.
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="SwAV: predict from one view of an image the cluster assignment of another view. The encoder is "
        "exported; the projection head and the prototypes, to continue from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="chance: log(prototypes)",
        snippets=image_encoders.SNIPPETS,
        tags=("swav", "clustering"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        large_views: int = 2,
        prototypes: int = 128,
        hidden_dim: int = 512,
        projection_dim: int = 128,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        freeze_prototypes_fraction: float = 0.02,
        queue_size: int = 0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if not 1 <= large_views <= len(views.views) or len(views.views) < 2:
            raise BadInput(f"large_views {large_views} of {len(views.views)} views: SwAV compares at least 2 views")
        image_encoders.check_views(encoder, views)
        self.encoder, self.views, self.large_views = encoder, views, large_views
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.freeze_prototypes_fraction = freeze_prototypes_fraction
        self.projection = heads.mlp([image_encoders.width(encoder), hidden_dim, projection_dim], norm)
        rows = prototypes + large_views * queue_size
        sizes = f"--prototypes {prototypes}, --queue_size {queue_size}, --projection_dim {projection_dim}"
        memory.refuse_too_large(rows * projection_dim, sizes)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, projection_dim), dim=1))
        self.register_buffer("queue", torch.zeros(large_views, queue_size, projection_dim))
        self.register_buffer("queued", torch.zeros((), dtype=torch.long))

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        features = image_encoders.features_of_views(self.encoder, self.views(pixel_values, key))
        z = F.normalize(self.projection(torch.cat(features)).float(), dim=1)
        return {"z": z.unflatten(0, (len(features), -1)).transpose(0, 1)}

    def loss(self, z: Tensor) -> Output:
        """Equation 1 over all pairs of views. z: (batch, views, projection_dim), of unit length, large views first."""
        with torch.autocast(z.device.type, enabled=False):
            scores = (z @ self.prototypes.T).unbind(1)
            targets = [self._assigned(scores[i], i) for i in range(self.large_views)]
            loss = between_views(targets, scores, self.temperature)
        found = (scores[-1].argmax(1) == targets[0].argmax(1)).float().mean()
        if self.training and self.queue.shape[1]:
            self._enqueue(z[:, : self.large_views].detach())
        # targets are watched: they are equal for all images when one prototype takes all
        return Output(loss, {"prototype_found": found}, targets[0], trivial_loss=math.log(len(self.prototypes)))

    def _assigned(self, scores: Tensor, view: int) -> Tensor:
        """(batch, prototypes): the targets from a large view's scores."""
        size = self.queue.shape[1]
        if not size or self.queued < size:
            return sinkhorn(scores, self.epsilon, self.iterations)
        earlier = self.queue[view] @ self.prototypes.detach().T
        return sinkhorn(scores, self.epsilon, self.iterations, beside=earlier)

    @torch.no_grad()
    def _enqueue(self, z: Tensor) -> None:
        """z: (batch, large views, projection_dim)."""
        newest = gather(z).transpose(0, 1)
        size = self.queue.shape[1]
        self.queue.copy_(torch.cat([newest[:, :size], self.queue], 1)[:, :size])
        self.queued += newest.shape[1]

    def after_backward(self) -> None:
        if self.progress < self.freeze_prototypes_fraction:  # section 4.1: frozen in the first epoch
            self.prototypes.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    def exported(self) -> PreTrainedModel:
        return self.encoder
