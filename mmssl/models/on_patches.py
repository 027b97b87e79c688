"""Convolutional encoders that are trained on small patches and export as encoders of whole images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check(model: PreTrainedModel) -> None:
    """Raise BadInput if the model does not take both small patches and whole images."""
    if getattr(model.config, "num_attention_heads", None):
        raise BadInput(
            f"a {type(model).__name__} takes images of one size, and so not both patches and whole images; use a "
            "convolutional --encoder"
        )


@torch.no_grad()
def fit_to_patches(model: PreTrainedModel, side: int) -> None:
    """Set to zero the weights of a new convolutional network that patches of `side` pixels never reach: those of a
    kernel beside the middle where the map is one pixel. Training on patches would leave them as they were drawn, and
    whole images, whose maps are larger, would then go through random weights. Standardised kernels (BiT) stay: a zero
    in them is none once they are standardised."""
    inputs: dict[nn.Conv2d, torch.Size] = {}

    def note(convolution: nn.Conv2d, given: tuple[Tensor]) -> None:
        inputs[convolution] = given[0].shape[2:]

    convolutions = [module for module in model.modules() if type(module) is nn.Conv2d]
    hooks = [convolution.register_forward_pre_hook(note) for convolution in convolutions]
    training = model.training
    model.eval()(torch.zeros(1, 3, side, side))
    model.train(training)
    for hook in hooks:
        hook.remove()
    for convolution, size in inputs.items():
        rows, columns = (_reached(convolution, axis, size[axis]) for axis in (0, 1))
        convolution.weight *= rows[:, None] & columns


def _reached(convolution: nn.Conv2d, axis: int, size: int) -> Tensor:
    """(kernel size,) bool: which weights along an axis meet a pixel of a map of `size`, and not only its border."""
    kernel, stride = convolution.kernel_size[axis], convolution.stride[axis]
    padding, dilation = convolution.padding[axis], convolution.dilation[axis]
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    place = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation - padding
    return ((place >= 0) & (place < size)).any(0)
