"""What methods with a discriminator share: the discriminator, the losses of both players (Goodfellow et al. 2014,
arXiv:1406.2661), shifts of the images that it sees (Zhao et al. 2020, arXiv:2006.10738), and how far images differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.models import image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHIFT = 1 << 15  # first stream of the shifts' draws, between those of the image's view and those of the noise


class Discriminator(nn.Module):
    """(batch, 3, height, width), normalised -> (batch,) fp32 logits: how real the images look. encoder: its trunk, an
    image encoder, see models.image_encoders."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(image_encoders.width(encoder), 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(image_encoders.features(self.encoder, images)).float()[:, 0]


def undecided(training: bool) -> float | None:
    """The loss of a discriminator that always says 1/2, log 4. None in training: perfect samples have it, too, and a
    run that ends with it has not failed."""
    return None if training else math.log(4)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), the negative of equation 1. real, fake: (batch,) logits."""
    return (F.softplus(-real) + F.softplus(fake)).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-log D(G(z)). fake: (batch,) logits."""
    return F.softplus(-fake).mean()


def translated(images: Tensor, key: Tensor, stream: int, fraction: float) -> Tensor:
    """Each image shifted by up to this fraction of its height and width, either way, in whole pixels; pixels from
    outside repeat the border. images: (batch, 3, height, width). stream: the first of two that the shifts use."""
    height, width = images.shape[2:]
    drawn = 2 * draws.uniform(key[:, None], stream + torch.arange(2, device=key.device)) - 1
    down, right = ((drawn[:, i, None] * fraction * size).round().long() for i, size in enumerate((height, width)))
    rows = (torch.arange(height, device=key.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=key.device) + right).clamp(0, width - 1)
    images = images.gather(2, rows[:, None, :, None].expand_as(images))
    return images.gather(3, columns[:, None, None, :].expand_as(images))


def spread(images: Tensor) -> Tensor:
    """The deviation of a pixel over the images, averaged. images: (batch, 3, height, width)."""
    return images.std(0).mean()
