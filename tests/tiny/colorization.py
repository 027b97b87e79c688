from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmssl.methods import colorization
from tiny import simclr
from tiny.cpc_image import bit
from tiny.deepcluster import Stored, one_view


def counted() -> Tensor:
    return colorization.count_colours(Stored(), one_view())


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit) -> colorization.Colorization:
    torch.manual_seed(0)
    return colorization.Colorization(encoder(), one_view(), counted(), dim=32)


VARIANTS = {
    "vit": lambda: simclr.around(method(simclr.vit)),
    "resnet": lambda: simclr.around(method(simclr.resnet)),
    "bit": lambda: simclr.around(method(bit)),
}
