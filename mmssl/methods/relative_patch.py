"""Relative patch position: from two patches of an image, tell where the second lies beside the first.

Doersch et al. 2015, arXiv:1505.05192, section 3. One encoder turns both patches into vectors; a small network tells
from the pair at which of the eight places around the first the second was; cross entropy. Cures of shortcuts (section
3.1): a gap, so that no line continues from patch to patch; a jitter of each place; colours are dropped or projected,
because a lens shifts green against magenta by an amount that tells the place in the image. Differs: all eight
neighbours of a centre are in the batch, which costs nine patches instead of sixteen; a dropped channel is replaced by
the one that is kept, not by noise; patches are not blurred; the features of an image are the mean over its patches, in
rows and columns that overlap by half.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images import patches
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders

if TYPE_CHECKING:
    from mmssl.models.patch_encoder import PatchEncoderModel

CENTRE = 4  # of the nine patches, row by row
AROUND = (0, 1, 2, 3, 5, 6, 7, 8)  # the others: the classes, in this order
COLOURS = ("drop", "project", "keep")


def fitting(side: int, gap: float = 0.5, jitter: float = 0.07) -> int:
    """The largest patches that an image of `side` pixels has room for. gap, jitter: see RelativePatch."""
    return max((p for p in range(1, side + 1) if _room(p, *_pixels(p, gap, jitter)) <= side), default=1)


def places(key: Tensor, size: tuple[int, int], patch: int, gap: int, jitter: int) -> tuple[Tensor, Tensor]:
    """(top, left), both (batch, 9) int64: the first row and column of each patch, row by row. The grid lies anywhere in
    the image, and each patch is moved by up to `jitter` pixels either way. key: (batch,). size: height and width. All
    others in pixels."""
    streams = STREAMS_PER_VIEW + torch.arange(20, device=key.device)  # those before belong to the view
    drawn = draws.uniform(key[:, None], streams)
    steps = torch.arange(3, device=key.device) * (patch + gap)
    grid = steps.repeat_interleave(3), steps.repeat(3)
    found = []
    for axis in (0, 1):
        start = drawn[:, axis, None] * (size[axis] - _room(patch, gap, jitter) + 1)
        moved = drawn[:, 2 + 9 * axis : 11 + 9 * axis] * (2 * jitter + 1)
        found.append(start.long() + grid[axis] + moved.long())
    return found[0], found[1]


class RelativePatch(Method):
    """
    encoder: a convolutional network that is applied to each patch, see models.on_patches.
    views:   one view of each image.
    gap:     between patches, as a fraction of their side: about half (section 3).
    jitter:  how far a patch is moved at most, either way, as a fraction of its side: 7 of 96 pixels (section 3.1).
    colour:  of each patch: "drop" two channels at random, "project" green and magenta to grey, or "keep" all.
    """

    unit = "images"
    card = Card(
        about="Relative patch position: from two patches of an image, tell at which of the eight places around the "
        "first the second lies. The patch encoder is exported: it cuts an image into patches, encodes each, and gives "
        "the mean. The classifier of places, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained without labels, on patches: evaluate it on your task before you rely on it.",
        trivial="chance: log(8)",
        snippets=image_encoders.SNIPPETS,
        tags=("relative-patch", "context-prediction"),
    )

    def __init__(
        self,
        encoder: PatchEncoderModel,
        views: Views,
        gap: float = 0.5,
        jitter: float = 0.07,
        colour: str = "drop",
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.colour = encoder, views, colour
        self.patch_size = encoder.config.patch_size
        self.gap, self.jitter = _pixels(self.patch_size, gap, jitter)
        if self.gap <= 2 * self.jitter:
            raise BadInput(
                f"--gap {gap}, --jitter {jitter} of patches of {self.patch_size} pixels: they would touch, and lines "
                "that continue tell their places; raise --gap, or lower --jitter"
            )
        width = image_encoders.width(encoder)
        self.classifier = heads.mlp([2 * width, width, len(AROUND)], norm="layer")

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which all of an image's changes and
        the places of its patches are drawn."""
        features, logits = self.classified(self.patches(pixel_values, key))
        true = torch.arange(len(AROUND), device=logits.device).expand(logits.shape[:2])
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits.float().flatten(0, 1), true.flatten())
        found = (logits.argmax(2) == true).float().mean().detach()
        return Output(loss, {"accuracy": found}, features[:, CENTRE].detach().float(), math.log(len(AROUND)))

    def patches(self, pixel_values: Tensor, key: Tensor) -> Tensor:
        """(batch, 9, 3, side, side), normalised: the grid of patches, row by row, as the encoder sees them. Raises
        BadInput if an image has no room for them."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        if (room := _room(self.patch_size, self.gap, self.jitter)) > min(pixels.shape[2:]):
            raise BadInput(
                f"--crop_size {self.patch_size}: three patches with their gaps and jitter take {room} pixels, an image "
                f"has {pixels.shape[2]} x {pixels.shape[3]}; lower --crop_size, or raise --image_size"
            )
        top, left = places(key, tuple(pixels.shape[2:]), self.patch_size, self.gap, self.jitter)
        found = patches.cut(pixels, top, left, self.patch_size)
        if self.colour == "project":
            return patches.without_green_magenta(found, self.views.std)
        if self.colour == "drop":
            streams = STREAMS_PER_VIEW + 20 + torch.arange(9, device=key.device)  # after those of the places
            return patches.one_channel(found, draws.uniform(key[:, None], streams))
        return found

    def classified(self, nine: Tensor) -> tuple[Tensor, Tensor]:
        """(features of all patches, scores of each of the eight others). (batch, 9, 3, side, side) -> (batch, 9, width)
        and (batch, 8, 8): others, then places."""
        features = image_encoders.features(self.encoder.backbone, nine.flatten(0, 1)).unflatten(0, nine.shape[:2])
        others = torch.cat([features[:, :CENTRE], features[:, CENTRE + 1 :]], 1)
        return features, self.classifier(torch.cat([features[:, CENTRE, None].expand_as(others), others], 2))

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Of each image the centre patch, another, drawn from its key, and maps of the eight places: the probability of
        each, and the true one. Arguments as in `forward`."""
        nine, images = self.patches(pixel_values, key), torch.arange(len(key), device=key.device)
        other = (len(AROUND) * draws.uniform(key, STREAMS_PER_VIEW + 29)).long()
        around = torch.tensor(AROUND, device=key.device)
        probabilities = self.classified(nine)[1][images, other].float().softmax(1)
        pictures = {
            "image": self.views.whole(pixel_values),
            "centre patch": nine[:, CENTRE],
            "other patch": nine[images, around[other]],
        }
        maps = {"probabilities": probabilities, "true place": F.one_hot(other, len(AROUND)).to(probabilities)}
        return {title: self.views.to_unit_range(each) for title, each in pictures.items()} | {
            title: _map(values) for title, values in maps.items()
        }

    def exported(self) -> PatchEncoderModel:
        return self.encoder


def _pixels(patch: int, gap: float, jitter: float) -> tuple[int, int]:
    """(gap, jitter) in pixels; the least jitter, if there is one, is a pixel."""
    return round(gap * patch), max(1, round(jitter * patch)) if jitter else 0


def _room(patch: int, gap: int, jitter: int) -> int:
    """The side in pixels of the grid of nine patches, wherever jitter moves them."""
    return 3 * patch + 2 * gap + 2 * jitter


def _map(values: Tensor) -> Tensor:
    """(batch, 8) in [0, 1], of the eight places -> (batch, 3, 3, 3), grey, with a blue pixel in the centre."""
    grid = values.new_zeros(len(values), 9)
    grid[:, list(AROUND)] = values
    grid = grid.view(-1, 1, 3, 3).repeat(1, 3, 1, 1)
    grid[:, :, 1, 1] = values.new_tensor([0.2, 0.3, 0.7])
    return grid
