"""A first convolution that sees only the Sobel derivatives of the grey image, in an encoder of a standard class.

A convolution of the two Sobel derivatives with kernels of (side - 2) pixels is a convolution of the image with kernels
of `side` pixels, from a linear subspace of all kernels. An encoder whose first kernels are kept in that subspace
computes the same, and loads as any other: a filter in front of it would be lost in an export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.errors import BadInput
from mmssl.kernels.views_torch import LUMA

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DERIVATIVE = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))  # along the width


def kernels(encoder: PreTrainedModel, std: Tensor) -> Tensor:
    """(dimension, 3 * side * side): an orthonormal basis of the kernels that see only Sobel derivatives.

    std: (3,), the deviation by which pixels are divided. Raises BadInput if the first kernels are too small.
    """
    _, channels, height, width = first(encoder).weight.shape
    if min(height, width) < 3 or channels != 3:
        raise BadInput(f"--edges: a Sobel filter takes 3 x 3 pixels, the encoder's first kernels {height} x {width}")
    across = torch.tensor(DERIVATIVE)
    spread = []
    for derivative in (across, across.T):
        for y in range(height - 2):
            for x in range(width - 2):
                plane = torch.zeros(height, width)
                plane[y : y + 3, x : x + 3] = derivative
                spread.append((torch.tensor(LUMA) * std.cpu())[:, None, None] * plane)
    _, scale, basis = torch.linalg.svd(torch.stack(spread).flatten(1).double(), full_matrices=False)
    return basis[scale > 1e-6 * scale[0]].float()


@torch.no_grad()
def restrict(encoder: PreTrainedModel, basis: Tensor) -> None:
    """Project the first kernels, in place, on the subspace that `basis` spans (see `kernels`)."""
    weight = first(encoder).weight
    weight.copy_((weight.flatten(1) @ basis.T @ basis).view_as(weight))


def first(encoder: PreTrainedModel) -> nn.Conv2d:
    """The convolution that sees the pixels."""
    return next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
