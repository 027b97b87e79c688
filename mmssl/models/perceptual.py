"""How far apart two images are for an encoder that is not trained (Johnson et al. 2016, arXiv:1603.08155)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.images import decoding
from mmssl.models import image_encoders

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel


class Perceptual(nn.Module):
    """(predicted, true), both (batch, 3, height, width) in [0, 1] -> (batch,): the squared error of the encoder's last
    map, relative to the mean square of that of the true image.

    A ViT sees images of its own size, a convolutional network images as they are. Raises BadInput if the encoder has no
    map.
    """

    def __init__(self, encoder: PreTrainedModel, processor: BaseImageProcessor) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.size = decoding.shape(processor) if image_encoders.patch_size(encoder) else None
        for name, values in zip(("mean", "std"), decoding.normalisation(processor), strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        with torch.no_grad():
            self.maps(torch.zeros(1, 3, *decoding.shape(processor)))

    def train(self, mode: bool = True) -> Perceptual:
        """The encoder stays in evaluation mode: its batch norms keep their statistics."""
        return super().train(False)

    def forward(self, predicted: Tensor, true: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.maps(true).float()
        error = (self.maps(predicted).float() - target).square().mean((1, 2, 3))
        return error / target.square().mean((1, 2, 3)).clamp(min=1e-12)

    def maps(self, images: Tensor) -> Tensor:
        """(batch, channels, rows, columns)."""
        if self.size and tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return image_encoders.maps(self.encoder, (images - self.mean) / self.std)
