"""Teachers: networks whose weights are an exponential moving average (EMA) of a student's."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """An equal network without gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update(teacher: nn.Module, student: nn.Module, momentum: float | Tensor) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, for parameters and running statistics alike: statistics
    that moved faster would not be those of the teacher's weights (EMAN, Cai et al. 2021, arXiv:2101.08482). Counters
    are copied."""
    slow, fast = ([*network.parameters(), *network.buffers()] for network in (teacher, student))
    for mine, theirs in zip(slow, fast, strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - momentum)
        else:
            mine.copy_(theirs)


def warmed_up(momentum: float, steps: Tensor) -> Tensor:
    """At most (1 + steps) / (10 + steps): so early an average that moves more slowly is still of the first weights.
    steps: () int64, on the device of the weights, where it is not read."""
    return ((1 + steps) / (10 + steps)).clamp(max=momentum)


def momentum(start: float, progress: float) -> float:
    """From `start` to 1 by a cosine: 1 - (1 - start) (cos(pi progress) + 1) / 2 (BYOL, arXiv:2006.07733, section 3.2).

    progress: share of the training done, in [0, 1], as `Method.progress`.
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
