from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.lejepa import LeJEPA
from mmssl.models import image_encoders
from tiny import simclr


def crops() -> views.Views:
    large = views.View(size=16, flip=0.0, hue=0.0)
    return views.Views(views.multi_crop([large, large], 8, 2), image_encoders.MEAN, image_encoders.STD)


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, norm: str = "batch", weight: float = 0.05) -> LeJEPA:
    torch.manual_seed(0)
    return LeJEPA(encoder(), crops(), 2, 16, 8, weight, slices=32, norm=norm)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit, norm="layer")),
    "resnet": lambda: simclr.around(method(simclr.resnet)),
}
