"""A model larger than the memory is refused before it is built: a machine that swaps, or a killed process, explains
nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from mmssl.device import free_memory
from mmssl.distributed import sharded, world_size
from mmssl.errors import BadInput

TRAINED = 16  # bytes of a weight in fp32 with its gradient and AdamW's two moments

Model = TypeVar("Model", bound=nn.Module)


def build(make: Callable[[], Model], flags: str) -> Model:
    """The model that `make` gives. flags: those that decide its size. Raises BadInput as `refuse_too_large` does."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # counts the weights, but allocates none
        weights = sum(parameter.numel() for parameter in make().parameters())
    refuse_too_large(weights, flags)
    return make()


def refuse_too_large(weights: int, flags: str, each: int = TRAINED) -> None:
    """Raises BadInput, beginning with `flags`, if so many weights do not fit into memory. each: bytes of one."""
    free, needed = free_memory(), weights * each / (world_size() if sharded() else 1)
    if free is not None and needed > free:
        raise BadInput(
            f"{flags}: training {weights:,} weights takes {needed / 1e9:,.1f} GB{' a process' * sharded()}, and "
            f"{free / 1e9:,.1f} GB of memory are free. Choose a smaller model"
        )
