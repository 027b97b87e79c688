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
MULTIPLE = 64  # of the rows of a rounded matrix: a product with 50,257 rows is a fifth slower than one with 50,304
ADDED = {"cpu": 2**19}  # numbers of a product added to a gradient at once: their fp32 copy stays in the cache


def _overwrite(logits: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(nats, right) of each row of `logits + bias`, both (rows,). Overwrites the logits with the gradient of `nats @
    weight`. Computes in fp32."""
    nats, right = torch.empty_like(weight), torch.empty_like(targets, dtype=torch.bool)
    rows = max(1, AT_ONCE.get(logits.device.type, OTHERWISE) // logits.shape[1])
    block = torch.empty(min(rows, len(logits)), logits.shape[1], device=logits.device)
    for some, target, w, loss, hit in zip(
        *(part.split(rows) for part in (logits, targets[:, None], weight[:, None], nats, right)), strict=True
    ):
        z = some.float()  # of fp32 it is the same tensor
        if bias is not None:
            z = z + bias
        top, asked = z.amax(1, keepdim=True), z.gather(1, target)
        hit.copy_((asked == top)[:, 0])
        p = torch.softmax(z, 1, out=block[: len(z)])
        # the largest probability is 1 / vocabulary or more, so its logarithm is finite; the target's may not be
        loss.copy_((top - asked - p.amax(1, keepdim=True).log())[:, 0])
        p *= w
        p.scatter_add_(1, target, -w)
        some.copy_(p)
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
        new = torch.empty_like if len(features) else torch.zeros_like
        of_features, of_matrix, of_bias = (
            new(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip((features, matrix, bias), ctx.needs_input_grad, strict=False)
        )
        nats, right = torch.empty_like(weight), torch.empty_like(targets, dtype=torch.bool)
        (n, _), (vocabulary, _), kind = features.shape, matrix.shape, features.device.type
        rounded = _rounded(matrix.detach(), dtype)
        rows = -(-n // max(1, -(-n * vocabulary // CHUNK.get(kind, OTHERWISE))))  # of a chunk; all are alike
        held = features.new_empty(rows, len(rounded), dtype=dtype)
        product = torch.empty_like(rounded) if of_matrix is not None else None
        for start in range(0, n, max(1, rows)):
            now = slice(start, start + rows)
            x = features[now].detach().to(dtype)
            gradient = torch.mm(x, rounded.mT, out=held[: len(x)])  # the logits, until they are overwritten
            nats[now], right[now] = _overwrite(gradient[:, :vocabulary], targets[now], weight[now], bias)
            if of_features is not None:
                of_features[now] = gradient @ rounded
            if of_matrix is not None:
                _add(of_matrix, torch.mm(gradient.mT, x, out=product)[:vocabulary], first=start == 0)
            if of_bias is not None:
                _add(of_bias, gradient[:, :vocabulary].sum(0, dtype=torch.float32), first=start == 0)
        ctx.gradients = of_features, of_matrix, of_bias
        ctx.dtypes = features.dtype, matrix.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nats, right)
        return nats @ weight, nats, right

    @staticmethod
    @once_differentiable
    def backward(ctx, of_loss: Tensor, *_) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # autograd adds in place to what nobody else holds
        scaled = [
            None if gradient is None else gradient.mul_(of_loss).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        del gradients
        return *scaled, None, None, None


def _rounded(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix in `dtype`; where that is another one, with rows of zeros up to a MULTIPLE."""
    if dtype == matrix.dtype:
        return matrix
    rounded = matrix.new_empty(-(-len(matrix) // MULTIPLE) * MULTIPLE, matrix.shape[1], dtype=dtype)
    rounded[len(matrix) :] = 0
    rounded[: len(matrix)].copy_(matrix)
    return rounded


def _add(total: Tensor, part: Tensor, first: bool) -> None:
    """total += part; `first`: total = part."""
    rows = max(1, ADDED.get(part.device.type, part.numel()) // part[0].numel())
    for of_total, of_part in zip(total.split(rows), part.split(rows), strict=True):
        of_total.copy_(of_part) if first else of_total.add_(of_part)


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
