from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.moco import MoCo
from tiny import simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, layers: int = 2, momentum: float = 0.9) -> MoCo:
    torch.manual_seed(0)
    one = MoCo(encoder(), simclr.two_views(), 8, layers, queue_size=20, momentum=momentum)
    with torch.no_grad():  # a full queue: the task is as hard at the first step as later
        one(**simclr.batch(20))
    return one


VARIANTS = {
    "v2": lambda: simclr.around(method(simclr.vit), "key"),
    "v1": lambda: simclr.around(method(simclr.resnet, layers=1), "key"),
}
