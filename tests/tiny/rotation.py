from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.rotation import Rotation
from tiny import simclr
from tiny.deepcluster import one_view


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, kind: type = Rotation) -> Rotation:
    torch.manual_seed(0)
    return kind(encoder(), one_view())


VARIANTS = {"vit": lambda: simclr.around(method(simclr.vit)), "resnet": lambda: simclr.around(method(simclr.resnet))}
