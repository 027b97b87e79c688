from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.joined import Joined
from mmssl.data.labelled import Labelled
from mmssl.methods.domain_adaptation import DomainAdaptation
from mmssl.models import classifiers
from tiny import Tiny, simclr
from tiny.deepcluster import Stored, one_view

NAMES = ["one", "two", "three"]


def parts() -> Joined:
    """Stripes with labels, and fewer, darker ones without."""
    source, target = Stored(), Stored(16)
    target.pixels = target.pixels // 2
    return Joined({"source": Labelled(source, torch.arange(len(source)) % 3, NAMES, "stripes"), "target": target})


def method(alignment: str, encoder: Callable[[], PreTrainedModel] = simclr.vit, **weights) -> DomainAdaptation:
    torch.manual_seed(0)
    return DomainAdaptation(
        classifiers.around(encoder(), "image", NAMES), "image", alignment, views=one_view(), **weights
    )


def tiny(*given, **weights) -> Tiny:
    one = method(*given, **weights)
    usual = simclr.around(one)
    return Tiny(
        one, parts(), batch_size=8, processor=usual.processor, example=usual.example, auto_class=one.card.auto_class
    )


VARIANTS = {
    "dann-vit": lambda: tiny("dann"),
    "dann-resnet": lambda: tiny("dann", simclr.resnet),
    "coral-vit": lambda: tiny("coral"),
    "deepjdot-vit": lambda: tiny("deepjdot", weight=0.01),
    "none-resnet": lambda: tiny("none", simclr.resnet),
}
