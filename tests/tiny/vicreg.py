from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.vicreg import VICReg
from tiny import simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, norm: str = "batch", variance: float = 25.0) -> VICReg:
    torch.manual_seed(0)
    return VICReg(encoder(), simclr.two_views(), 8, variance=variance, norm=norm)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit, norm="layer")),
    "resnet": lambda: simclr.around(method(simclr.resnet)),
}
