from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.moco import MoCo
from tiny import simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, layers: int = 2, momentum: float = 0.9) -> MoCo:
    torch.manual_seed(0)
    return MoCo(encoder(), simclr.two_views(), 8, layers, queue_size=20, momentum=momentum)


VARIANTS = {
    "v2": lambda: simclr.around(method(simclr.vit), "key"),
    "v1": lambda: simclr.around(method(simclr.resnet, layers=1), "key"),
}
