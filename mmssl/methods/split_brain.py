"""Split-brain autoencoder: half of the channels predicts colour from grey, the other half grey from colour.

Zhang et al. 2017, arXiv:1611.09842. Two networks of half the width, each of which sees what the other one predicts; the
features of both are joined. Colours ab are classified into 313 bins with soft targets (data.images.lab), lightness L
into 100. Images without colour are left out of the loss. Differs: what a half sees is linear in RGB, so that its first
convolution can see it in a plain image: Y of YCbCr in place of L, and the plane of Cb and Cr in place of ab
(models.colour_directions); the exported ResNet holds both halves, with zeros between them (models.halves); all stages
are read by a decoder (models.hypercolumns); targets are means over squares of 4 x 4 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.images import lab
from mmssl.data.images.views import Views
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.methods.colorization import CHUNK, COUNTED, TEMPERATURE, count_colours, targets
from mmssl.models import colour_directions, halves, hypercolumns, image_encoders

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from mmssl.data.images.pictures import Pictures

LIGHTNESS_BINS = 100  # of one unit of L each
SHOWN_LIGHTNESS = 60.0  # of the figure of what the half that sees colours sees
HALVES = ("sees_grey.", "sees_colour.")


def lightness_bin(lightness: Tensor) -> Tensor:
    """L in [0, 100] -> its bin, int64, of the same shape."""
    return (lightness * (LIGHTNESS_BINS / lab.LARGEST_L)).long().clamp(0, LIGHTNESS_BINS - 1)


@torch.no_grad()
def count(pictures: Pictures, views: Views) -> tuple[Tensor, Tensor]:
    """(colours (313,), lightness (100,)), each of sum 1: how often the bins occur in the whole images, grey ones left
    out. Raises BadInput if all are grey."""
    total = torch.zeros(LIGHTNESS_BINS)
    colours = count_colours(pictures, views).sum(0)
    for rows in torch.arange(min(len(pictures), COUNTED)).split(CHUNK):
        pixels = views.to_unit_range(views.whole(pictures.__getitems__(rows.tolist())["pixel_values"]))
        lightness, ab, coloured = targets(pixels)
        small = F.adaptive_avg_pool2d(lightness, ab.shape[1:3])
        total += torch.bincount(lightness_bin(small[coloured]).flatten(), minlength=LIGHTNESS_BINS)
    return colours, total / total.sum()


class SplitBrain(Method):
    """
    encoder: a ResNetModel, see models.image_encoders; its halves are trained, the one exported is new.
    views:   one view of each image, without changes of colour.
    counted: the colours and the lightness of the training images, see `count`.
    dim:     of the hidden layer of each half's decoder.
    """

    unit = "images"
    card = Card(
        about="Split-brain autoencoder: half of the channels predicts colour from grey, the other half grey from "
        "colour. The exported ResNet holds both halves, with zeros between them, and takes plain images: the first "
        "half of its features sees a picture in grey, the second half its colours alone. The decoders, to continue "
        "from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained without labels: evaluate it on your task before you rely on it. Of a grey "
        "picture the second half of the features tells nothing.",
        trivial="the colours and the lightness of the training images",
        snippets=image_encoders.SNIPPETS,
        tags=("split-brain", "colorization"),
    )

    def __init__(self, encoder: PreTrainedModel, views: Views, counted: tuple[Tensor, Tensor], dim: int = 128) -> None:
        super().__init__()
        self.views = views
        self.sees_grey, self.sees_colour = halves.halve(encoder)
        self.from_separate_halves = halves.are_separate(encoder)
        for name, directions in (("grey", colour_directions.GREY), ("colour", colour_directions.OPPONENT)):
            projection = colour_directions.projection(directions, views.std)
            self.register_buffer(f"{name}_kernels", projection, persistent=False)
        self.restrict()
        channels = hypercolumns.channels(self.sees_grey)
        self.predict_colour = hypercolumns.Hypercolumns(channels, dim, lab.BINS)
        self.predict_lightness = hypercolumns.Hypercolumns(channels, dim, LIGHTNESS_BINS)
        self.register_buffer("bins", lab.bins(), persistent=False)
        self.register_buffer("candidates", lab.candidates(), persistent=False)
        heads = {"colours": self.predict_colour, "lightness": self.predict_lightness}
        for share, (name, head) in zip(counted, heads.items(), strict=True):
            share = share.clamp(min=1e-6)  # a bin that was never seen has a finite logarithm, too
            self.register_buffer(f"share_of_{name}", share / share.sum())
            with torch.no_grad():  # the first prediction is the best one that needs no image
                head.classify.bias.copy_(share.log())

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view is drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        lightness, ab, coloured = targets(self.views.to_unit_range(pixels))
        colour_logits, lightness_logits, features = self.predict(pixels, ab.shape[1:3])
        with torch.autocast(pixels.device.type, enabled=False):
            index, weight = lab.soft_encoding(ab.flatten(0, -2), self.bins, self.candidates)
            small = lightness_bin(F.adaptive_avg_pool2d(lightness, ab.shape[1:3])).flatten()[:, None]
            # grey images count as zero, as in methods.colorization
            counts = coloured[:, None, None].expand(ab.shape[:3]).flatten().float()
            tasks = {
                "colour": (colour_logits, self.share_of_colours, index, weight),
                "lightness": (lightness_logits, self.share_of_lightness, small, torch.ones_like(small)),
            }
            loss, trivial, metrics = 0.0, 0.0, {}
            for name, (logits, share, bins, parts) in tasks.items():
                scores = logits.float().flatten(0, -2)
                loss = loss + _cross_entropy(scores, bins, parts, counts)
                trivial = trivial + _cross_entropy(share.log().expand_as(scores), bins, parts, counts)
                right = (scores.argmax(1) == bins[:, 0]).float()
                metrics[f"{name}_accuracy"] = (right @ counts / counts.sum().clamp(min=1)).detach()
        return Output(loss, metrics, features.detach().float(), trivial.detach())

    def predict(self, pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """(logits of colours (batch, rows, columns, 313), of lightness (batch, rows, columns, 100), features (batch,
        width)). pixels: (batch, 3, height, width), normalised. size: (rows, columns)."""
        grey, colour = hypercolumns.maps(self.sees_grey, pixels), hypercolumns.maps(self.sees_colour, pixels)
        features = torch.cat([grey[-1], colour[-1]], 1).flatten(1)
        return self.predict_colour(grey, tuple(size)), self.predict_lightness(colour, tuple(size)), features

    @torch.no_grad()
    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Images; what each half sees of them; and what it predicts from that, with what it has seen beside it."""
        pixels = self.views.whole(pixel_values)
        image = self.views.to_unit_range(pixels)
        found = lab.from_srgb(image)
        lightness, ab = found[:, :1], found[:, 1:]
        size = targets(image)[1].shape[1:3]
        colour_logits, lightness_logits, _ = self.predict(pixels, size)
        middles = (torch.arange(LIGHTNESS_BINS, device=pixels.device) + 0.5)[:, None] * (lab.LARGEST_L / LIGHTNESS_BINS)

        def large(values: Tensor) -> Tensor:
            return F.interpolate(values.permute(0, 3, 1, 2), lightness.shape[2:], mode="bilinear")

        colours = large(lab.annealed_mean(colour_logits, self.bins, TEMPERATURE))
        greys = large(lab.annealed_mean(lightness_logits, middles, TEMPERATURE))
        flat = torch.full_like(lightness, SHOWN_LIGHTNESS)
        columns = {
            "grey": (lightness, torch.zeros_like(ab)),
            "its colours": (lightness, colours),
            "colour": (flat, ab),
            "its lightness": (greys, ab),
        }
        return {"image": image} | {name: lab.to_srgb(torch.cat(parts, 1)) for name, parts in columns.items()}

    def restrict(self) -> None:
        colour_directions.restrict(self.sees_grey, self.grey_kernels)
        colour_directions.restrict(self.sees_colour, self.colour_kernels)

    def after_step(self) -> None:
        self.restrict()

    def exported(self) -> PreTrainedModel:
        """A new ResNet that holds both halves."""
        return halves.join(self.sees_grey, self.sees_colour)

    def continue_from(self, name: str | Path) -> None:
        """See Method. Raises BadInput also if weights join the halves of the encoder, which would be lost."""
        if not self.from_separate_halves:
            raise BadInput(
                f"--model_name_or_path {name}: its halves see each other, so this is not a split-brain encoder; start "
                "a new one with --encoder"
            )
        super().continue_from(name)

    def _heads(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state_dict(keep_vars=True).items() if not k.startswith(HALVES)}


def _cross_entropy(scores: Tensor, bins: Tensor, parts: Tensor, counts: Tensor) -> Tensor:
    """The mean cross entropy of soft targets, times `counts`. scores: (n, classes). bins, parts: (n, k), the classes of
    a target and their probabilities. counts: (n,)."""
    return (counts * (scores.logsumexp(1) - (parts * scores.gather(1, bins)).sum(1))).mean()
