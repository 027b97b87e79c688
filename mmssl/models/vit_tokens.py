"""A ViTModel of transformers run on some of an image's patches, or with some of them masked.

The model stays as transformers made it, so that it is exported plainly; what only pretraining needs, such as a mask
token, belongs to the method.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ViTModel


def has_square_grid(encoder: PreTrainedModel) -> bool:
    """Whether `encoder` is a ViTModel with as many rows of patches as columns."""
    from transformers import ViTModel

    return isinstance(encoder, ViTModel) and side(encoder) ** 2 == encoder.embeddings.patch_embeddings.num_patches


def check(encoder: PreTrainedModel, method: str) -> None:
    """Raises BadInput if the encoder is not a ViTModel with a square grid of patches."""
    from transformers import ViTModel

    if not isinstance(encoder, ViTModel):
        raise BadInput(
            f"{method} masks patches of a ViTModel, and this is a {type(encoder).__name__}; use --encoder vit-micro, "
            "or continue from a ViT"
        )
    if not has_square_grid(encoder):
        patches = encoder.embeddings.patch_embeddings.num_patches
        raise BadInput(f"{method} needs a square grid of patches, and this ViTModel has {patches} patches an image")


def side(vit: ViTModel) -> int:
    """Number of patches in a row."""
    return math.isqrt(vit.embeddings.patch_embeddings.num_patches)


def at(tokens: Tensor, places: Tensor) -> Tensor:
    """(batch, tokens, width), (batch, places) -> (batch, places, width)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def inside(top: Tensor, left: Tensor, height: Tensor, width: Tensor, side: int) -> Tensor:
    """(images, blocks, side ** 2) bool: which patches lie in each block of a grid with `side` patches in a row.

    top, left, height, width: (images, blocks), in patches; or sizes of (images, 1), if an image's blocks share them.
    """
    index = torch.arange(side, device=top.device)
    rows = (index >= top[..., None]) & (index < (top + height)[..., None])
    columns = (index >= left[..., None]) & (index < (left + width)[..., None])
    return (rows[..., :, None] & columns[..., None, :]).flatten(2)


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
def xavier(module: nn.Module) -> None:
    """Xavier initialisation of all linear layers and patch projections (MAE, arXiv:2111.06377, appendix A.1)."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


@torch.no_grad()
def initialise(vit: ViTModel) -> None:
    """Give a new ViT the initial weights of MAE's encoder: Xavier, and sine-cosine positions, which are not trained.

    With the default, a deviation of 0.02, small patches have an embedding far smaller than the positions.
    """
    xavier(vit.embeddings)
    xavier(vit.layers)
    positions = vit.embeddings.position_embeddings
    positions.copy_(sine_cosine_positions(side(vit), positions.shape[2]))
    positions.requires_grad_(False)
