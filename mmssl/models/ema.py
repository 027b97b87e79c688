"""Teachers: networks whose weights are an exponential moving average (EMA) of a student's, see `method.ema_update`."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """An equal network without gradient."""
    return copy.deepcopy(student).requires_grad_(False)


def momentum(start: float, progress: float) -> float:
    """From `start` to 1 by a cosine: 1 - (1 - start) (cos(pi progress) + 1) / 2 (BYOL, arXiv:2006.07733, section 3.2).

    progress: share of the training done, in [0, 1], as `Method.progress`.
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
