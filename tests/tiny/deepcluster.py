from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.data.images.numbered import Numbered
from mmssl.methods.deepcluster import DeepCluster
from mmssl.models import image_encoders
from tiny import Tiny, simclr
from tiny.mae import Pictures


class Stored(Pictures):
    """Fetches a batch in one call, as data.images.pictures does."""

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return default_collate([self[i] for i in indices])

    def set_epoch(self, epoch: int) -> None:
        """Its keys are the same in each epoch."""


def one_view() -> views.Views:
    view = views.View(scale=(0.5, 1.0), flip=0.0, hue=0.0)
    return views.Views([view], image_encoders.MEAN, image_encoders.STD)


def method(
    encoder: Callable[[], PreTrainedModel] = simclr.vit, clusters: int = 6, kind: type = DeepCluster, **settings
) -> DeepCluster:
    torch.manual_seed(0)
    one = kind(encoder(), one_view(), Numbered(Stored()), clusters, pca_dim=8, **settings)
    one.cluster(one.features_of_all(), 0)  # as at the start of an epoch
    return one


def numbered(made: DeepCluster) -> Tiny:
    tiny = simclr.around(made)
    tiny.data = made.images
    return tiny


VARIANTS = {
    "vit": lambda: numbered(method(simclr.vit)),
    "resnet": lambda: numbered(method(simclr.resnet)),
    "edges": lambda: numbered(method(simclr.vit, edges=True, every=2)),
}
