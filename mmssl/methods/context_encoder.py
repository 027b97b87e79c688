"""Context encoder: fill a hole in an image from what surrounds it.

Pathak et al. 2016, arXiv:1604.07379: the centre, or random regions, of an image are hidden; an encoder sees the rest,
with the mean colour in the hole; a decoder fills it. Loss: squared error and, from a discriminator that sees what was
filled in, an adversarial one, 0.999 and 0.001 (section 3.2, "joint loss"). A border of the hole overlaps with what the
encoder sees: there the squared error weighs 10 times as much (section 3.2), so that the filling is continuous. Differs:
the discriminator sees the whole image with the filled hole, for holes of any shape; random regions are rectangles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images.views import Views
from mmssl.errors import BadInput
from mmssl.method import Card, Output
from mmssl.models import image_encoders
from mmssl.models.adversarial import Discriminator, discriminator_loss, generator_loss
from mmssl.models.decoder import Decoder
from mmssl.models.reconstructing import Reconstructing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REGIONS = ("centre", "random")
PLACES = 1 << 16  # first stream of the draws of random holes, far after those of the image's view
HOLES = 3  # random rectangles in an image, which may overlap
OF_OVERLAP = 10.0  # weight of an overlapping pixel (section 3.2)


def rectangles(top: Tensor, left: Tensor, high: Tensor, wide: Tensor, size: tuple[int, int]) -> Tensor:
    """(batch, 1, height, width) bool: True inside any rectangle of an image. top, left, high, wide: (batch, rectangles)
    in pixels. size: (height, width)."""
    y, x = (torch.arange(side, device=top.device).view(1, 1, -1) for side in size)
    rows = (y >= top[..., None]) & (y < (top + high)[..., None])
    columns = (x >= left[..., None]) & (x < (left + wide)[..., None])
    return (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)


def shrunk(hole: Tensor, by: int) -> Tensor:
    """The hole without its border of `by` pixels. hole: (batch, 1, height, width) bool. What lies beyond the image
    counts as hidden."""
    outside = F.max_pool2d((~hole).float(), 2 * by + 1, stride=1, padding=by) if by else (~hole).float()
    return outside == 0


class ContextEncoder(Reconstructing):
    """Trained by `steps.alternating` with `reported=1`: phase 0 is the discriminator's, phase 1 that of encoder and
    decoder. Without an adversarial loss, by `steps.standard`.

    encoder:       an image encoder, see models.image_encoders.
    discriminator: another one, not exported.
    views:         one view of each image.
    size:          (height, width) of the images.
    region:        one of REGIONS; the centre has half of the image's height and width (section 3.3).
    code_dim:      numbers between encoder and decoder.
    overlap:       pixels of the hole's border that the encoder sees; 4 to 7 of 227 or 128 in the paper.
    adversarial:   weight of the adversarial loss; the squared error has the rest.
    """

    unit = "images"
    card = Card(
        about="A context encoder: fill a hole in an image from what surrounds it. The encoder is exported; the decoder "
        "and the discriminator, to continue from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained on images with a hole: evaluate it on your task before you rely on it.",
        trivial="the mean image",
        snippets=image_encoders.SNIPPETS,
        tags=("context-encoder", "inpainting"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        discriminator: PreTrainedModel,
        views: Views,
        size: tuple[int, int],
        region: str = "centre",
        code_dim: int = 256,
        overlap: int = 1,
        adversarial: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < min(size) // 8:
            raise BadInput(f"--overlap {overlap}: a hole in {size[0]} x {size[1]} pixels has no room for it; lower it")
        self.encoder, self.discriminator, self.views = encoder, Discriminator(discriminator), views
        self.size, self.region, self.overlap, self.adversarial = size, region, overlap, adversarial
        if not adversarial:
            self.discriminator.requires_grad_(False)
        self.code = nn.Sequential(nn.Linear(image_encoders.width(encoder), code_dim), nn.ReLU())
        self.decoder = Decoder(code_dim, size)

    def players(self) -> list[nn.Module]:
        """The discriminator, and encoder and decoder: each needs an optimizer, in this order."""
        return [self.discriminator, nn.ModuleList([self.encoder, self.code, self.decoder])]

    def forward(self, pixel_values: Tensor, key: Tensor, phase: int = 1) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which the view and the hole of each
        image are drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        hole = self.hole(key)
        features = image_encoders.features(self.encoder, self._hidden(pixels, hole))
        predicted = self.decoder(self.code(features)).float()
        filled = torch.where(hole, predicted, pixels)
        if phase == 0:
            loss = discriminator_loss(self.discriminator(pixels), self.discriminator(filled.detach()))
            return Output(loss, {"adversary_loss": loss.detach()})
        with torch.autocast(pixels.device.type, enabled=False):
            squared = self.squared_error(predicted, pixels, hole)
            mean_image = pixels.mean(0, keepdim=True).expand_as(pixels)
            trivial = self.squared_error(mean_image, pixels, hole).detach()
        fooling = generator_loss(self.discriminator(filled)) if self.adversarial else squared.new_zeros(())
        loss = (1 - self.adversarial) * squared + self.adversarial * fooling
        metrics = {"squared_error": self.errors(predicted, pixels, key).mean(), "generator_loss": fooling}
        metrics = {name: value.detach() for name, value in metrics.items()}
        trivial = (1 - self.adversarial) * trivial + self.adversarial * fooling.detach()  # the same term in both
        return Output(loss, metrics, features.detach().float(), trivial)

    def hole(self, key: Tensor) -> Tensor:
        """(batch, 1, height, width) bool, True where the decoder fills."""
        height, width = self.size
        if self.region == "centre":
            sides = (height // 4, width // 4, height // 2, width // 2)
            return rectangles(*(key.new_full((len(key), 1), side) for side in sides), self.size)
        # a quarter of the image, as the centre has, if they do not overlap
        streams = torch.arange(PLACES, PLACES + 3 * HOLES, device=key.device)
        ratio, y, x = draws.uniform(key[:, None], streams).chunk(3, 1)
        area, ratio = height * width / (4 * HOLES), torch.exp2(2 * ratio - 1)  # height / width, from 1/2 to 2
        high = (area * ratio).sqrt().round().clamp(1, height - 1).long()
        wide = (area / ratio).sqrt().round().clamp(1, width - 1).long()
        top, left = (y * (height - high + 1)).long(), (x * (width - wide + 1)).long()
        return rectangles(top, left, high, wide, self.size)

    def squared_error(self, predicted: Tensor, pixels: Tensor, hole: Tensor) -> Tensor:
        """The mean over the hole, in which the pixels that the encoder sees weigh OF_OVERLAP times as much."""
        weight = torch.where(shrunk(hole, self.overlap), 1.0, OF_OVERLAP) * hole
        each = ((predicted - pixels).square().mean(1, keepdim=True) * weight).sum((1, 2, 3))
        return (each / hole.sum((1, 2, 3))).mean()

    def errors(self, predicted: Tensor, pixels: Tensor, key: Tensor) -> Tensor:
        """(batch,): mean squared error of each image where nothing is seen, in units of normalised pixels."""
        hidden = shrunk(self.hole(key), self.overlap)
        each = ((predicted - pixels).square().mean(1, keepdim=True) * hidden).sum((1, 2, 3))
        return each / hidden.sum((1, 2, 3)).clamp(min=1)

    def given(self, pixels: Tensor, key: Tensor) -> Tensor:
        """(batch, 3, height, width): what the encoder gets of normalised pixels."""
        return self._hidden(pixels, self.hole(key))

    def _hidden(self, pixels: Tensor, hole: Tensor) -> Tensor:
        return pixels.masked_fill(shrunk(hole, self.overlap), 0.0)  # 0 is the mean colour

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        pixels = self.views.whole(pixel_values)
        given = self.given(pixels, key)
        predicted = self.decoder(self.code(image_encoders.features(self.encoder, given))).float()
        filled = torch.where(self.hole(key), predicted, pixels)
        columns = {"given": given, "filled": filled, "true": pixels}
        return {title: self.views.to_unit_range(images) for title, images in columns.items()}

    def exported(self) -> PreTrainedModel:
        return self.encoder
