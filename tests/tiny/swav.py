from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.swav import SwAV
from tiny import simclr
from tiny.lejepa import crops


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, norm: str = "layer", **settings) -> SwAV:
    torch.manual_seed(0)
    return SwAV(encoder(), crops(), 2, 12, 16, 8, norm=norm, **{"freeze_prototypes_fraction": 0.0} | settings)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit)),
    "queue": lambda: simclr.around(method(simclr.vit, queue_size=20)),
    "resnet": lambda: simclr.around(method(simclr.resnet, norm="batch")),
}
