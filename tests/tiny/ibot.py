from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.ibot import IBOT
from mmssl.models import image_encoders
from tiny import lejepa, simclr


def method(
    encoder: Callable[[], PreTrainedModel] = simclr.vit, crops: views.Views | None = None, frozen: float = 0.0
) -> IBOT:
    torch.manual_seed(0)
    # teacher and centre that move slowly: while the centre moves away from 0, the loss rises
    settings = {"freeze_prototypes_fraction": frozen, "centre_momentum": 0.99}
    return IBOT(encoder(), crops or lejepa.crops(), 2, 12, 16, 64, 0.99, **settings)


def two_large_views() -> views.Views:
    view = views.View(size=16, scale=(0.4, 1.0), flip=0.0, hue=0.0)
    return views.Views([view, view], image_encoders.MEAN, image_encoders.STD)


VARIANTS = {
    "multi_crop": lambda: simclr.around(method(), "teacher"),
    "two_views": lambda: simclr.around(method(crops=two_large_views()), "teacher"),
}
