"""Two halves of a ResNet that do not see each other, and the one ResNet that they are together.

The channels of each layer are divided: the first half of them belongs to one network, the second half to the other. A
ResNet whose weights between the halves are zero computes both at once: convolutions do not mix them, and batch norms,
ReLUs, residual sums and pooling treat each channel alone. It is a stock model with twice the channels.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ResNetModel


def halve(encoder: PreTrainedModel) -> tuple[ResNetModel, ResNetModel]:
    """Copies of the two halves of `encoder`; weights between them are left out. Both see all channels of an image.

    Raises BadInput if it is not a ResNetModel or has an odd number of channels.
    """
    from transformers import ResNetModel

    if not isinstance(encoder, ResNetModel):
        raise BadInput(
            f"a {type(encoder).__name__} has no halves that do not see each other: its norms or attention mix all "
            "channels; use --encoder resnet-micro, resnet18, ..."
        )
    config = copy.deepcopy(encoder.config)
    if odd := [width for width in (config.embedding_size, *config.hidden_sizes) if width % 2]:
        raise BadInput(f"the encoder has a layer of {odd[0]} channels, which cannot be halved")
    config.embedding_size //= 2
    config.hidden_sizes = [width // 2 for width in config.hidden_sizes]
    halves = ResNetModel(config), ResNetModel(config)
    whole = encoder.state_dict()
    for second, half in enumerate(halves):
        state = half.state_dict()
        half.load_state_dict({name: whole[name][_block(value, whole[name], second)] for name, value in state.items()})
        half.to(memory_format=torch.channels_last)
    return halves


@torch.no_grad()
def join(first: ResNetModel, second: ResNetModel) -> ResNetModel:
    """The ResNet whose features are those of `first`, then those of `second`. In evaluation mode."""
    from transformers import ResNetModel

    config = copy.deepcopy(first.config)
    config.embedding_size *= 2
    config.hidden_sizes = [2 * width for width in config.hidden_sizes]
    whole = ResNetModel(config).to(first.device)
    state = {name: torch.zeros_like(value) for name, value in whole.state_dict().items()}
    for number, half in enumerate((first, second)):
        for name, value in half.state_dict().items():
            state[name][_block(value, state[name], number)] = value
    whole.load_state_dict(state)
    return whole.to(memory_format=torch.channels_last).eval()


def are_separate(encoder: PreTrainedModel) -> bool:
    """Whether no weight of the ResNet joins its halves."""
    whole, joined = encoder.state_dict(), join(*halve(encoder)).state_dict()
    return all(torch.equal(value, joined[name].to(value.device)) for name, value in whole.items())


def _block(half: Tensor, whole: Tensor, second: int) -> tuple[slice, ...]:
    """Where the values of a half are in those of the whole."""
    return tuple(
        slice(None) if size == full else slice(second * size, (second + 1) * size)
        for size, full in zip(half.shape, whole.shape, strict=True)
    )
