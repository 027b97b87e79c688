"""Super-resolution: reconstruct an image from one of, usually, a quarter of its height and width.

Ledig et al. 2016, arXiv:1609.04802: squared error and 1e-3 times an adversarial loss (SRGAN-MSE, section 3.3 and table
1) and, if asked for, an error on the features of another encoder (equation 5), a self-supervised one instead of VGG.
Differs: the encoder is a standard one and sees the small image enlarged again by bicubic interpolation, as large as the
images that users give it; the decoder adds to that what is missing; the error on features is added to that on pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.images.views import Views
from mmssl.errors import BadInput
from mmssl.method import Card, Output
from mmssl.models import image_encoders
from mmssl.models.adversarial import Discriminator, discriminator_loss, generator_loss
from mmssl.models.decoder import MapDecoder
from mmssl.models.reconstructing import Reconstructing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mmssl.models.perceptual import Perceptual

WINDOW, SIGMA = 11, 1.5  # pixels: of SSIM's window (Wang et al. 2004, section III.C)
SMALLEST = 2  # px: side of the small image


def psnr(predicted: Tensor, true: Tensor) -> Tensor:
    """(batch,): peak signal-to-noise ratio in dB; at most 100. predicted, true: (batch, 3, height, width) in [0, 1]."""
    return -10 * (predicted - true).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def ssim(predicted: Tensor, true: Tensor) -> Tensor:
    """(batch,): structural similarity (Wang et al. 2004, equation 13), the mean over channels and all places of a
    Gaussian window that lies inside the image. predicted, true: (batch, 3, height, width) in [0, 1]."""
    size = min(WINDOW, *predicted.shape[2:])
    offset = torch.arange(size, device=predicted.device) - (size - 1) / 2
    line = torch.exp(-offset.square() / (2 * SIGMA**2))
    window = torch.outer(line, line).div(line.sum().square())[None, None]

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], window).view(*x.shape[:2], -1)

    a, b = mean(predicted), mean(true)
    variances = mean(predicted.square()) - a.square() + mean(true.square()) - b.square()
    covariance = mean(predicted * true) - a * b
    c1, c2 = 0.01**2, 0.03**2
    each = (2 * a * b + c1) * (2 * covariance + c2) / ((a.square() + b.square() + c1) * (variances + c2))
    return each.mean((1, 2))


MEASURES = {"psnr": psnr, "ssim": ssim}


class SuperResolution(Reconstructing):
    """Trained by `steps.alternating` with `reported=1`: phase 0 is the discriminator's, phase 1 that of encoder and
    decoder. Without an adversarial loss, by `steps.standard`.

    encoder:       an image encoder, see models.image_encoders.
    discriminator: another one, not exported.
    views:         one view of each image.
    size:          (height, width) of the images.
    factor:        by which height and width are divided.
    adversarial:   weight of the adversarial loss.
    perceptual:    the error on features, times `weight`; None: none.
    """

    unit = "images"
    card = Card(
        about="Super-resolution: reconstruct an image from a smaller one. The encoder is exported; the decoder and the "
        "discriminator, to continue from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained on blurred images: evaluate it on your task before you rely on it.",
        trivial="bicubic interpolation",
        tags=("super-resolution",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        discriminator: PreTrainedModel,
        views: Views,
        size: tuple[int, int],
        factor: int = 4,
        adversarial: float = 1e-3,
        perceptual: Perceptual | None = None,
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.small = tuple(side // factor for side in size)
        if min(self.small) < SMALLEST:
            raise BadInput(f"--factor {factor} makes images of {size[0]} x {size[1]} pixels too small; lower it")
        self.encoder, self.discriminator = encoder, Discriminator(discriminator)
        self.card = replace(self.card, snippets=image_encoders.snippets_of_map(encoder))
        if not adversarial:
            self.discriminator.requires_grad_(False)
        self.views, self.adversarial, self.perceptual, self.weight = views, adversarial, perceptual, weight
        cells = image_encoders.on_one(image_encoders.maps, encoder, size).shape[2:]
        self.decoder = MapDecoder(image_encoders.width(encoder), cells, size)

    def players(self) -> list[nn.Module]:
        """The discriminator, and encoder and decoder: each needs an optimizer, in this order."""
        return [self.discriminator, nn.ModuleList([self.encoder, self.decoder])]

    def forward(self, pixel_values: Tensor, key: Tensor, phase: int = 1) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view is drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        given = self.given(pixels, key)
        maps = image_encoders.maps(self.encoder, given)
        predicted = given + self.decoder(maps).float()
        if phase == 0:
            loss = discriminator_loss(self.discriminator(pixels), self.discriminator(predicted.detach()))
            return Output(loss, {"adversary_loss": loss.detach()})
        loss = squared = self.errors(predicted, pixels, key).mean()
        fooling = generator_loss(self.discriminator(predicted)) if self.adversarial else squared.new_zeros(())
        loss = loss + self.adversarial * fooling
        metrics = {"squared_error": squared, "generator_loss": fooling}
        unit = self.views.to_unit_range(predicted), self.views.to_unit_range(pixels)
        if self.perceptual:
            metrics["feature_error"] = self.perceptual(*unit).mean()
            loss = loss + self.weight * metrics["feature_error"]
        if not self.training:
            metrics |= {name: measure(*unit).mean() for name, measure in MEASURES.items()}
        metrics = {name: value.detach() for name, value in metrics.items()}
        trivial = self.errors(given, pixels, key).mean() + self.adversarial * metrics["generator_loss"]
        if self.perceptual:  # in training it would cost two passes more
            enlarged = self.views.to_unit_range(given)
            trivial = None if self.training else trivial + self.weight * self.perceptual(enlarged, unit[1]).mean()
        features = maps.detach().float().mean((2, 3))
        return Output(loss, metrics, features, trivial)

    def given(self, pixels: Tensor, key: Tensor) -> Tensor:
        """(batch, 3, height, width): the small image, enlarged. pixels: normalised."""
        small = F.interpolate(pixels, self.small, mode="bicubic", antialias=True)
        return F.interpolate(small, pixels.shape[2:], mode="bicubic")

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        pixels = self.views.whole(pixel_values)
        given = self.given(pixels, key)
        predicted = given + self.decoder(image_encoders.maps(self.encoder, given)).float()
        small = F.interpolate(F.interpolate(given, self.small, mode="area"), given.shape[2:])  # in its own pixels
        columns = {"small": small, "bicubic": given, "restored": predicted, "true": pixels}
        return {title: self.views.to_unit_range(images) for title, images in columns.items()}

    def exported(self) -> PreTrainedModel:
        return self.encoder

    def _heads(self) -> dict[str, Tensor]:
        """Not the encoder of the error on features, which has a checkpoint of its own."""
        return {name: value for name, value in super()._heads().items() if not name.startswith("perceptual.")}
