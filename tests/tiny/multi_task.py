from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.joined import Joined
from mmssl.method import Method
from mmssl.methods.colorization import Colorization
from mmssl.methods.multi_task import MultiTask
from mmssl.methods.rotation import Rotation
from mmssl.methods.simclr import SimCLR
from tiny import Tiny, colorization, simclr
from tiny.deepcluster import Stored, one_view

TASKS: dict[str, Callable[[PreTrainedModel], Method]] = {
    "rotation": lambda encoder: Rotation(encoder, one_view()),
    "simclr": lambda encoder: SimCLR(encoder, simclr.two_views(), 8, 0.5),
    "colorization": lambda encoder: Colorization(encoder, one_view(), colorization.counted(), dim=32),
}


def method(*tasks: str, order: str = "sum", encoder: Callable[[], PreTrainedModel] = simclr.vit) -> MultiTask:
    torch.manual_seed(0)
    shared = encoder()
    return MultiTask({name: TASKS[name](shared) for name in tasks}, order)


def tiny(*tasks: str, **options) -> Tiny:
    usual = simclr.around(method(*tasks, **options))
    usual.data = Joined({name: Stored() for name in tasks})
    return usual


VARIANTS = {
    "sum": lambda: tiny("rotation", "simclr"),
    "turns": lambda: tiny("colorization", "rotation", "simclr", order="turns"),
    "alone": lambda: tiny("rotation"),
    "turns-resnet": lambda: tiny("colorization", "simclr", "rotation", order="turns", encoder=simclr.resnet),
}
