"""A first convolution that sees only some directions of colour, in an encoder of a standard class.

A kernel has three values at each of its pixels, one for each channel. If they stay in a subspace, the convolution sees
a linear map of the colours, as if that map stood in front of it; there it would be lost in an export.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.errors import BadInput
from mmssl.kernels.views_torch import LUMA
from mmssl.models import sobel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GREY = (LUMA,)  # what is left of a grey image: Y of YCbCr
OPPONENT = ((-LUMA[0], -LUMA[1], 1 - LUMA[2]), (1 - LUMA[0], -LUMA[1], -LUMA[2]))  # B - Y and R - Y: Cb and Cr, scaled


def projection(directions: Sequence[Sequence[float]], std: Tensor) -> Tensor:
    """(3, 3): the orthogonal projection of a kernel's values at a pixel on those that see only `directions`, which are
    functions of red, green and blue. std: (3,), the deviation by which pixels are divided."""
    basis, _ = torch.linalg.qr((torch.tensor(directions) * std.cpu()).double().T)
    return (basis @ basis.T).float()


@torch.no_grad()
def restrict(encoder: PreTrainedModel, projection: Tensor) -> None:
    """Project the first kernels in place. Raises BadInput if they do not see three channels."""
    kernel = sobel.first(encoder)
    if kernel.weight.shape[1] != 3 or kernel.groups != 1:
        raise BadInput(f"the encoder's first kernels see {kernel.weight.shape[1]} channels of an image, not 3")
    weight = torch.einsum("cd,odhw->ochw", projection, kernel.weight)
    if type(kernel).__name__ == "WeightStandardizedConv2d":
        # it subtracts the mean of a kernel; what is left lies in the subspace only if that mean is zero
        ones = projection.sum(1)[:, None, None].expand_as(weight[0])
        weight = weight - (weight * ones).sum((1, 2, 3), keepdim=True) / ones.square().sum().clamp(min=1e-12) * ones
    kernel.weight.copy_(weight)
