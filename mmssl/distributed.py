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


class _BatchNorm:
    """Mixed into torch's batch norms: statistics over the rows of all processes, with gradient.

    Torch's own SyncBatchNorm needs a GPU; this runs on any backend, so that the gradient of N processes is that of one
    process on the whole batch. Every process must hold equally many rows. Names of parameters and buffers stay.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        with torch.autocast(x.device.type, enabled=False):
            values = x.to(torch.promote_types(x.dtype, torch.float32))
            each = gather(torch.stack(torch.var_mean(values, axes, correction=0))[None])
            variances, means = each.unbind(1)  # (processes, channels)
            # not E[x**2] - E[x]**2: where the mean is large, little would be left of that
            variance, mean = variances.mean(0) + means.var(0, correction=0), means.mean(0)
            self._follow(mean.detach(), variance.detach(), world_size() * values.numel() // values.shape[1])
            scale = torch.rsqrt(variance + self.eps)
            if self.affine:
                scale = scale * self.weight
            result = (values - mean.view(shape)) * scale.view(shape)
            return (result + self.bias.view(shape) if self.affine else result).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """The running statistics, as torch moves them: of the variance, the unbiased one."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


def share_batch_norm(module: nn.Module) -> None:
    """Every batch norm inside takes its statistics over all processes from now on."""
    shared = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
    for part in module.modules():
        if type(part) in shared:
            part.__class__ = shared[type(part)]


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a row of a batch changes what is computed for the others."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in module.modules())


def unwrap(method: nn.Module) -> nn.Module:
    """The method inside the distributed wrapper, if there is one."""
    return method.module if isinstance(method, DistributedDataParallel) else method
