from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.moco_v3 import MoCoV3
from tiny import simclr


def method(
    encoder: Callable[[], PreTrainedModel] = simclr.vit,
    norm: str = "batch",
    momentum: float = 0.9,
    freeze_patches: bool = True,
) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(encoder(), simclr.two_views(), 16, 8, 0.2, momentum, freeze_patches, norm)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit, norm="layer"), "momentum"),
    "resnet": lambda: simclr.around(method(simclr.resnet), "momentum"),
}
