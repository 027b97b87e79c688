"""Cross-entropy over a large vocabulary, without memory beyond that of the logits.

The usual operators write four tensors of the size of the logits. Here a few rows at a time, which stay in the cache,
are overwritten with their gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = {"cpu": 2**18}  # logits: a second-level cache of fp32
OTHERWISE = 2**26  # logits: few kernel launches on a GPU


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        loss, right = torch.empty_like(weight), torch.empty_like(targets, dtype=torch.bool)
        ctx.gradient = logits.detach()
        rows = max(1, AT_ONCE.get(logits.device.type, OTHERWISE) // logits.shape[1])
        for z, target, w, nats, hit in zip(
            *(part.split(rows) for part in (ctx.gradient, targets[:, None], weight[:, None], loss, right)), strict=True
        ):
            top = z.amax(1, keepdim=True)
            z -= top
            asked = z.gather(1, target)
            hit.copy_((asked == 0)[:, 0])
            total = z.exp_().sum(1, keepdim=True)
            nats.copy_((total.log() - asked)[:, 0])
            z *= w / total
            z.scatter_add_(1, target, -w)
        ctx.mark_non_differentiable(right)
        return loss @ weight, right

    @staticmethod
    @once_differentiable
    def backward(ctx, of_loss: Tensor, _) -> tuple[Tensor, None, None]:
        return ctx.gradient.mul_(of_loss), None, None


def cross_entropy_(logits: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, right): the sum of each row's cross-entropy in nats times its weight, and whether its target has the
    largest logit, (rows,) bool. Overwrites `logits`, which must not be read afterwards; backward works only once.

    logits: (rows, vocabulary) fp32, contiguous rows. targets: (rows,) int64. weight: (rows,) fp32. Raises ValueError if
    the shapes do not match; on a CPU, RuntimeError or IndexError if a target is not in the vocabulary.
    """
    if logits.ndim != 2 or not logits.shape[1] or not targets.shape == weight.shape == logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}, weight {tuple(weight.shape)}: must be "
            "(rows, vocabulary), (rows,), (rows,)"
        )
    return _CrossEntropy.apply(logits, targets, weight)
