"""Where the class token of a ViT looks: its attention to the patches in the last layer (DINO, arXiv:2104.14294, figure
1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import figures
from mmssl.models import vit_tokens

if TYPE_CHECKING:
    from transformers import ViTModel

HEADS = 4  # drawn, at most


@torch.no_grad()
def class_attention(vit: ViTModel, pixels: Tensor) -> Tensor:
    """(images, heads, rows, columns): the fraction of its attention that the class token pays to each patch.

    pixels: (images, 3, height, width), normalised, in the model's own size.
    """
    before = vit.config._attn_implementation
    vit.set_attn_implementation("eager")  # the others do not return the attention
    try:
        last = vit(pixels, output_attentions=True).attentions[-1].float()
    finally:
        vit.set_attn_implementation(before)
    return last[:, :, 0, 1:].unflatten(2, [vit_tokens.side(vit)] * 2)


def draw(vit: ViTModel, pixels: Tensor, images: Tensor, file: Path) -> str:
    """Draw images beside the attention of each head and its mean, from none (black) to the largest of the map (white).
    Returns the caption. images: (images, 3, height, width) in [0, 1], what `pixels` shows."""
    attention = class_attention(vit, pixels).cpu()
    maps = {"all heads": attention.mean(1)}
    maps |= {f"head {i + 1}": attention[:, i] for i in range(min(HEADS, attention.shape[1]))}
    columns = {"image": images}
    for name, each in maps.items():
        bright = each / each.amax((1, 2), keepdim=True).clamp(min=1e-12)
        columns[name] = F.interpolate(bright[:, None], images.shape[2:], mode="nearest").expand(-1, 3, -1, -1)
    figures.picture_grid(columns, file)
    return "Attention of the class token to the patches of held-out images in the last layer; brighter is more."
