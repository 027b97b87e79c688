"""Cross-entropy over a large vocabulary, without memory beyond that of the logits.

The usual operators write four tensors of the size of the logits. Here a few rows at a time, which stay in the cache,
are overwritten with their gradient. `linear_cross_entropy` includes the last layer, and holds the logits of a chunk of
rows only: for language models, which have a loss at every token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = {"cpu": 2**18}  # logits: a second-level cache of fp32
OTHERWISE = 2**26  # logits: few kernel launches on a GPU
# logits that linear_cross_entropy holds, 64 MB in bf16: with fewer, adding to the gradient of a large matrix takes
# longer than the products
CHUNK = {"cpu": 2**25}


def _overwrite(logits: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(nats, right) of each row of `logits + bias`, both (rows,). Overwrites the logits with the gradient of `nats @
    weight`. Computes in fp32."""
    nats, right = torch.empty_like(weight), torch.empty_like(targets, dtype=torch.bool)
    rows = max(1, AT_ONCE.get(logits.device.type, OTHERWISE) // logits.shape[1])
    for some, target, w, loss, hit in zip(
        *(part.split(rows) for part in (logits, targets[:, None], weight[:, None], nats, right)), strict=True
    ):
        z = some.float()  # of fp32 it is the same tensor
        if bias is not None:
            z += bias
        top = z.amax(1, keepdim=True)
        z -= top
        asked = z.gather(1, target)
        hit.copy_((asked == 0)[:, 0])
        total = z.exp_().sum(1, keepdim=True)
        loss.copy_((total.log() - asked)[:, 0])
        z *= w / total
        z.scatter_add_(1, target, -w)
        if z is not some:
            some.copy_(z)
    return nats, right


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.gradient = logits.detach()
        loss, right = _overwrite(ctx.gradient, targets, weight)
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


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, features: Tensor, matrix: Tensor, bias: Tensor | None, targets: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_features, of_matrix, of_bias = (
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip((features, matrix, bias), ctx.needs_input_grad, strict=False)
        )
        nats, right = torch.empty_like(weight), torch.empty_like(targets, dtype=torch.bool)
        rounded, kind = matrix.detach().to(dtype), features.device.type
        rows = max(1, CHUNK.get(kind, OTHERWISE) // len(matrix))
        for start in range(0, len(features), rows):
            now = slice(start, start + rows)
            x = features[now].detach().to(dtype)
            gradient = x @ rounded.mT  # the logits, until they are overwritten
            nats[now], right[now] = _overwrite(gradient, targets[now], weight[now], bias)
            if of_features is not None:
                of_features[now] = gradient @ rounded
            if of_matrix is not None:
                of_matrix += gradient.mT @ x
            if of_bias is not None:
                of_bias += gradient.sum(0, dtype=torch.float32)
        ctx.gradients = of_features, of_matrix, of_bias
        ctx.dtypes = features.dtype, matrix.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nats, right)
        return nats @ weight, nats, right

    @staticmethod
    @once_differentiable
    def backward(ctx, of_loss: Tensor, *_) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else gradient.mul_(of_loss).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None


def linear_cross_entropy(
    features: Tensor, matrix: Tensor, bias: Tensor | None, targets: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, nats, right) of the logits `features @ matrix.T + bias`, which are never held all at once: the sum of each
    row's cross-entropy times its weight, with a graph; the cross-entropies, (rows,); and whether each target has the
    largest logit, (rows,) bool. Backward works only once, since the forward pass leaves the gradients.

    features: (rows, width). matrix: (vocabulary, width). bias: (vocabulary,) or None. targets: (rows,) int64. weight:
    (rows,) fp32. The matrix products have the precision of autocast where it is on, the rest is fp32. Raises ValueError
    if the shapes do not match; on a CPU, RuntimeError or IndexError if a target is not in the vocabulary.
    """
    if (
        features.ndim != 2
        or features.shape[1:] != matrix.shape[1:]
        or not (targets.shape == weight.shape == features.shape[:1])
    ):
        raise ValueError(
            f"features {tuple(features.shape)}, matrix {tuple(matrix.shape)}, targets {tuple(targets.shape)}, weight "
            f"{tuple(weight.shape)}: must be (rows, width), (vocabulary, width), (rows,), (rows,)"
        )
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(features, matrix, bias, targets, weight, dtype)
