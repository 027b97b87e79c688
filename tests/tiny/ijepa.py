from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.ijepa import IJEPA
from mmssl.models import image_encoders, vit_tokens
from tiny import simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, momentum: float = 0.9, ratio: float = 0.5) -> IJEPA:
    torch.manual_seed(0)
    one_view = views.Views([views.WHOLE], image_encoders.MEAN, image_encoders.STD)
    return IJEPA(encoder(), one_view, 16, 1, 2, momentum, ratio)


def initialised() -> PreTrainedModel:
    encoder = simclr.vit()
    vit_tokens.initialise(encoder)
    return encoder


VARIANTS = {
    "new": lambda: simclr.around(method(initialised), "target"),
    "learned_positions": lambda: simclr.around(method(ratio=0.3), "target"),
}
