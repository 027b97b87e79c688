"""Other processes: how many there are, their embeddings, and the wrapper around a method that they share."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in rank order, with gradients: (batch, ...) -> (world_size * batch, ...).

    The backward pass sums what every process contributed to a row. When each process takes the mean loss over its own
    rows against the gathered ones, and the wrapper averages parameter gradients over processes, the result is the
    gradient of one process on the whole batch. Every process must hold equally many rows.
    """
    return x if world_size() == 1 else torch.cat(all_gather(x))


def unwrap(method: nn.Module) -> nn.Module:
    """The method inside the distributed wrapper, if there is one."""
    return method.module if isinstance(method, DistributedDataParallel) else method
