"""Projection heads and predictors: the small networks between an encoder and its loss, thrown away after training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from mmssl.models import memory

NORMS = {
    "batch": nn.BatchNorm1d,  # over the batches of all processes, see distributed.share_batch_norm
    "layer": nn.LayerNorm,
    "none": None,
}
WITHOUT_SCALE = {
    "batch": partial(nn.BatchNorm1d, affine=False),
    "layer": partial(nn.LayerNorm, elementwise_affine=False),
}


def mlp(
    widths: Sequence[int], norm: str = "batch", *, last_norm: bool = False, last_bias: bool = True
) -> nn.Sequential:
    """Linear layers from widths[0] to widths[-1]; between two of them a norm and a ReLU.

    norm: one of NORMS. last_norm: another one, without scale and shift, after the last layer. last_bias: whether the
    last layer has a bias, where no norm follows. A layer that a norm follows has none: the norm would take it away.

    Raises BadInput if it does not fit into memory.
    """
    memory.refuse_too_large(sum(a * b for a, b in pairwise(widths)), f"a head of widths {', '.join(map(str, widths))}")
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers.append(nn.Linear(before, after, bias=norm == "none"))
        if norm != "none":
            layers.append(NORMS[norm](after))
        layers.append(nn.ReLU())
    last_norm = last_norm and norm != "none"
    layers.append(nn.Linear(*widths[-2:], bias=last_bias and not last_norm))
    if last_norm:
        layers.append(WITHOUT_SCALE[norm](widths[-1]))
    return nn.Sequential(*layers)
