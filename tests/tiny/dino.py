from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.dino import DINO
from tiny import simclr
from tiny.lejepa import crops


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, norm: str = "none", **settings) -> DINO:
    torch.manual_seed(0)
    given = {"momentum": 0.9, "freeze_prototypes_fraction": 0.0} | settings
    return DINO(encoder(), crops(), 2, 12, 16, 8, **given, norm=norm)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit), "teacher"),
    "resnet": lambda: simclr.around(method(simclr.resnet, norm="batch"), "teacher"),
}
