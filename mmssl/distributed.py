"""Several processes: their number, the gathering of their embeddings, batch norm across them, and unwrapping DDP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from mmssl.errors import BadInput

_ALONE = ContextVar("alone", default=False)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _ALONE.get() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _ALONE.get() else 0


def sharded() -> bool:
    """Whether each process holds a part of the parameters (FSDP2), as `accelerate launch --use_fsdp` asks for."""
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return wanted and dist.is_initialized() and dist.get_world_size() > 1


def is_split(tensor: Tensor) -> bool:
    """Whether each process holds a part of the tensor."""
    if not sharded():
        return False
    from torch.distributed.tensor import DTensor  # its import takes a second

    return isinstance(tensor, DTensor)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor, gathered if it is split over processes: then every process must call this."""
    return tensor.full_tensor() if is_split(tensor) else tensor


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process computes as if there were no others. While the others wait for the main process to evaluate,
    it would otherwise wait for them forever in `gather`."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in rank order, with gradients: (batch, ...) -> (world_size * batch, ...).

    The backward pass sums the gradients that all processes have for a row. If each process takes the mean loss over its
    own rows against the gathered ones, and the wrapper averages parameter gradients over processes, the result is the
    gradient of one process on the whole batch. Every process must have the same number of rows.
    """
    if world_size() == 1:
        return x
    parts = all_gather(x)
    for part in parts:
        if part.requires_grad:  # torch's backward pass mixes up the values of a gradient that is not contiguous
            part.register_hook(Tensor.contiguous)
    return torch.cat(parts)


class _BatchNorm:
    """Mixin for torch's batch norms: statistics over the rows of all processes, with gradient.

    The gradient of N processes is thus that of one process on the whole batch. Torch's SyncBatchNorm needs a GPU; this
    runs on any backend. Every process must have the same number of rows. Parameters and buffers keep their names.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            if self.training and x.numel() == x.shape[1]:
                raise BadInput(
                    "a batch norm cannot normalise one value per channel, a batch of one: raise "
                    "--per_device_train_batch_size"
                )
            return super().forward(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        with torch.autocast(x.device.type, enabled=False):
            values = x.to(torch.promote_types(x.dtype, torch.float32))
            each = gather(torch.stack(torch.var_mean(values, axes, correction=0))[None])
            variances, means = each.unbind(1)  # (processes, channels)
            # not E[x**2] - E[x]**2, which loses precision when the mean is large
            variance, mean = variances.mean(0) + means.var(0, correction=0), means.mean(0)
            self._follow(mean.detach(), variance.detach(), world_size() * values.numel() // values.shape[1])
            scale = torch.rsqrt(variance + self.eps)
            if self.affine:
                scale = scale * self.weight
            result = (values - mean.view(shape)) * scale.view(shape)
            return (result + self.bias.view(shape) if self.affine else result).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics as torch does, with the unbiased variance."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1), momentum)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


def share_batch_norm(module: nn.Module) -> None:
    """Convert every batch norm in `module` in place to take its statistics over all processes."""
    shared = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
    for part in module.modules():
        if type(part) in shared:
            part.__class__ = shared[type(part)]


def has_batch_norm(module: nn.Module) -> bool:
    """Whether `module` has a batch norm in training mode, so that the rows of a batch affect each other."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in module.modules())


def unwrap(method: nn.Module) -> nn.Module:
    """The method inside the distributed wrapper, if there is one."""
    return method.module if isinstance(method, DistributedDataParallel) else method
