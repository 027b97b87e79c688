from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.simsiam import SimSiam
from tiny import simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, norm: str = "batch") -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(encoder(), simclr.two_views(), 16, 8, norm=norm)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit, norm="layer")),
    "resnet": lambda: simclr.around(method(simclr.resnet)),
}
