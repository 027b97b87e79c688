from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods import split_brain
from mmssl.models import image_encoders
from tiny import Tiny, simclr
from tiny.deepcluster import Stored, one_view


def bottlenecks() -> PreTrainedModel:
    return image_encoders._resnet(image_encoders.ResNetSize((16, 32), (1, 1), "bottleneck", stem=8))


def method(encoder: Callable[[], PreTrainedModel] = simclr.resnet) -> split_brain.SplitBrain:
    torch.manual_seed(0)
    return split_brain.SplitBrain(encoder(), one_view(), split_brain.count(Stored(), one_view()), dim=16)


def around(encoder: Callable[[], PreTrainedModel]) -> Tiny:
    """The batch norms of few channels multiply rounding: short steps, where weights are compared."""
    tiny = simclr.around(method(encoder))
    tiny.plain = lambda made: [torch.optim.SGD(made.parameters(), lr=0.01)]
    return tiny


VARIANTS = {"basic": lambda: around(simclr.resnet), "bottleneck": lambda: around(bottlenecks)}
