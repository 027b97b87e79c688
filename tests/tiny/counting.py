from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.counting import Counting
from mmssl.models import image_encoders
from tiny import simclr


def square() -> views.Views:
    """At 16 pixels: the encoder sees pictures of 8."""
    view = views.View(size=16, scale=(0.5, 1.0), flip=0.0, jitter=0.0, grey=0.0)
    return views.Views([view], image_encoders.MEAN, image_encoders.STD)


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, counts: int = 24, margin: float = 10.0) -> Counting:
    torch.manual_seed(0)
    return Counting(encoder(), square(), counts, margin)


VARIANTS = {"vit": lambda: simclr.around(method(simclr.vit)), "resnet": lambda: simclr.around(method(simclr.resnet))}
