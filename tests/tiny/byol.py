from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.byol import BYOL
from tiny import simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, norm: str = "batch", momentum: float = 0.9) -> BYOL:
    torch.manual_seed(0)
    return BYOL(encoder(), simclr.two_views(), 16, 8, momentum, norm)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit, norm="layer"), "target"),
    "resnet": lambda: simclr.around(method(simclr.resnet), "target"),
}
