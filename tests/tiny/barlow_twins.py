from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.barlow_twins import BarlowTwins
from tiny import simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, norm: str = "batch") -> BarlowTwins:
    torch.manual_seed(0)
    return BarlowTwins(encoder(), simclr.two_views(), 8, 0.05, norm)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit, norm="layer")),
    "resnet": lambda: simclr.around(method(simclr.resnet)),
}
