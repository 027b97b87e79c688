"""Predictions at each position of an image, from the feature maps of all stages of an encoder.

Hypercolumns: Hariharan et al. 2015, arXiv:1411.5752; for colorization: Larsson et al. 2016, arXiv:1603.06668.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.models import image_encoders, memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def maps(encoder: PreTrainedModel, pixels: Tensor) -> list[Tensor]:
    """Feature maps, each (batch, channels, rows, columns), and last the pooled features, as a map of one position.

    pixels: (batch, 3, height, width), normalised. A convolutional network has a map for each stage, a ViT one of its
    last tokens. Raises BadInput if the encoder has no such maps.
    """
    of_stages = image_encoders.patch_size(encoder) is None
    output = encoder(pixels, output_hidden_states=of_stages)
    hidden, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
    last = image_encoders.as_map(encoder, hidden, pixels)
    if pooled is None:
        pooled = hidden.mean((2, 3)) if of_stages else hidden.mean(1)
    before = output.hidden_states[1:-1] if of_stages else ()
    return [*before, last, pooled.flatten(1)[:, :, None, None]]


def channels(encoder: PreTrainedModel) -> list[int]:
    """The channels of each of `maps`."""
    side = getattr(encoder.config, "image_size", None) or 64
    size = (side, side) if isinstance(side, int) else tuple(side)
    return [each.shape[1] for each in image_encoders.on_one(maps, encoder, size)]


class Hypercolumns(nn.Module):
    """Two layers over the feature maps joined at each position, as products at the size of each map, which are then
    enlarged and summed: the same as joining enlarged maps, in less time.

    channels: of each map. dim: of the hidden layer. outputs: numbers predicted at a position.
    """

    def __init__(self, channels: Sequence[int], dim: int, outputs: int) -> None:
        super().__init__()
        memory.refuse_too_large(dim * (sum(channels) + outputs), f"--decoder_dim {dim}")
        # feature maps differ in scale: without a norm the one with the largest values would decide alone
        self.norms = nn.ModuleList(nn.GroupNorm(1, each) for each in channels)
        self.joined = nn.ModuleList(
            nn.Conv2d(each, dim, 1, bias=i == len(channels) - 1) for i, each in enumerate(channels)
        )
        self.classify = nn.Linear(dim, outputs)
        nn.init.zeros_(self.classify.weight)  # the first prediction is that of the bias

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(batch, rows, columns, outputs). maps: see the function of that name. size: (rows, columns)."""
        total = 0.0
        for norm, layer, each in zip(self.norms, self.joined, maps, strict=True):
            product = layer(norm(each))
            same = product.shape[2:] == size or product.shape[2:] == (1, 1)
            total = total + (product if same else enlarged(product, size))
        return self.classify(F.relu(total).expand(-1, -1, *size).permute(0, 2, 3, 1))


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(batch, channels, *size): the maps, interpolated bilinearly. maps: (batch, channels, rows, columns)."""
    if not torch.compiler.is_compiling():
        return F.interpolate(maps, size, mode="bilinear")
    # compiled by torch 2.13 for a CPU, the gradient of interpolate is zero: the same as products
    rows, columns = (
        F.interpolate(torch.eye(before, device=maps.device)[None], after, mode="linear")[0].to(maps.dtype)
        for before, after in zip(maps.shape[2:], size, strict=True)
    )
    return torch.einsum("nchw,hr,wk->ncrk", maps, rows, columns)
