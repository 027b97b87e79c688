"""One file per method, named like it: how to build it so small that it trains in milliseconds.

Each defines VARIANTS, {name: function that builds a Tiny}. tests/test_every_method.py holds them all to the guarantees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from mmssl.method import Method
from mmssl.training import optim, steps


def _adam(method: Method) -> list[Optimizer]:
    return [optim.adamw(method, 3e-3)]  # as recipes have it: fused


def _sgd(method: Method) -> list[Optimizer]:
    return [torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)]


@dataclass
class Tiny:
    """A method and what trains it.

    method:     seeded, without dropout and augmentation, so that 1 and 2 processes compute the same.
    data:       at least 3 * batch_size items.
    batch_size: of one optimizer step, over all processes; even. shuffle: no where each batch continues the one before.
    exported:   the model, in memory, that `method.save_pretrained` writes. processor, example, auto_class: as
                reloading.check_reload has them.
    moved:      prefixes of the parameters without gradient that the method moves itself (an EMA teacher).
    optimizers: for training; plain: for comparing weights, without anything that amplifies rounding, as Adam does.
    """

    method: Method
    data: Dataset
    batch_size: int
    collate_fn: Callable | None = None
    shuffle: bool = True
    exported: Callable[[Any], nn.Module] = lambda method: method.exported()
    processor: Any = None
    example: dict[str, Tensor | list[str]] | None = None
    auto_class: str = "AutoModel"
    moved: tuple[str, ...] = ()
    step: Callable = steps.standard
    optimizers: Callable[[Method], list[Optimizer]] = _adam
    plain: Callable[[Method], list[Optimizer]] = _sgd
