"""A ViTModel of transformers run on some of an image's patches, or with some of them masked.

The model stays as transformers made it, so that it is exported plainly; what only pretraining needs, such as a mask
token, belongs to the method.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ViTModel


def check(encoder: PreTrainedModel, method: str) -> None:
    """Raises BadInput if the encoder is not a ViTModel with a square grid of patches."""
    from transformers import ViTModel

    if not isinstance(encoder, ViTModel):
        raise BadInput(f"{method} masks patches, and a {type(encoder).__name__} has none; use --encoder vit-micro")
    patches = encoder.embeddings.patch_embeddings.num_patches
    if math.isqrt(patches) ** 2 != patches:
        raise BadInput(f"{method} needs a square grid of patches, and this ViTModel has {patches} patches an image")


def side(vit: ViTModel) -> int:
    """Number of patches in a row."""
    return math.isqrt(vit.embeddings.patch_embeddings.num_patches)


def at(tokens: Tensor, places: Tensor) -> Tensor:
    """(batch, tokens, width), (batch, places) -> (batch, places, width)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def embed(vit: ViTModel, pixels: Tensor, *, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
    """The input of the first layer, with positions: (batch, 1 + patches, width), the class token first.

    pixels: (batch, 3, height, width), normalised. masked: (batch, patches) bool, True = replaced by `mask_token`,
    (width,).
    """
    tokens = vit.embeddings.patch_embeddings(pixels)
    if masked is not None:
        tokens = torch.where(masked[..., None], mask_token.to(tokens.dtype), tokens)
    tokens = torch.cat([vit.embeddings.cls_token.expand(len(tokens), -1, -1), tokens], 1)
    return vit.embeddings.dropout(tokens + vit.embeddings.interpolate_pos_encoding(tokens, *pixels.shape[2:]))


def encode(vit: ViTModel, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
    """The output of all layers and the last norm for `tokens`, both (batch, tokens, width).

    seen: (batch, tokens) bool, True = other tokens attend to it; None: all. The output at other tokens has no meaning.
    """
    mask = None if seen is None else seen[:, None, None]
    for layer in vit.layers:
        tokens = layer(tokens, mask)
    return vit.layernorm(tokens)


def sine_cosine_positions(side: int, width: int) -> Tensor:
    """(1, 1 + side ** 2, width): zeros for the class token; for each patch a quarter of the width each to sine and
    cosine of its column, then of its row (Vaswani et al. 2017, arXiv:1706.03762, section 3.5, in two dimensions)."""
    frequency = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(*2 * [torch.arange(side, dtype=torch.float64)], indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (column, row)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), table.float()])[None]


@torch.no_grad()
def fix_positions(vit: ViTModel) -> None:
    """Give a new ViT sine-cosine positions, which are not trained."""
    positions = vit.embeddings.position_embeddings
    positions.copy_(sine_cosine_positions(side(vit), positions.shape[2]))
    positions.requires_grad_(False)
