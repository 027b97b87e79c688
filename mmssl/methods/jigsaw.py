"""Jigsaw: nine tiles of an image in disorder, and the network says which permutation they are in.

Noroozi & Favaro 2016, arXiv:1603.09246. The permutations are a fixed set, far from each other in Hamming distance; a
shared encoder sees one tile at a time, and a classifier sees the features of all nine. The tiles hide shortcuts
(data.images.tiles). Differs: the encoder ends in a mean over positions; the features of an image are the mean over its
tiles, in rows and columns that overlap by half; the first 72 permutations are the maps ax + b over the field of nine
elements, of which no two agree in more than one place; the greedy choice (algorithm 1) continues from there, by the
smallest distance before the mean one; and channels are standardised one by one.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations as all_orders
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images import tiles
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders

if TYPE_CHECKING:
    from mmssl.models.patch_encoder import PatchEncoderModel

GRID, TILES = 3, 9
ORDER = STREAMS_PER_VIEW + tiles.STREAMS * TILES  # stream of the draw of the permutation, after those of the tiles


def affine_maps() -> Tensor:
    """(72, 9): x -> ax + b over the field of nine elements, a not 0. An element 3u + v stands for u i + v, with u and v
    modulo 3 and i squared -1. The first nine, a = 1, differ everywhere; two others agree in at most one place, where
    ax + b = cx + d."""

    def value(a: int, b: int, x: int) -> int:
        (u, v), (s, t), (p, q) = divmod(a, 3), divmod(x, 3), divmod(b, 3)
        return 3 * ((u * t + v * s + p) % 3) + (v * t - u * s + q) % 3

    return torch.tensor([[value(a, b, x) for x in range(9)] for a in range(1, 9) for b in range(9)])


@cache
def permutation_set(count: int) -> Tensor:
    """(count, 9) int64: the first `affine_maps`; from the 73rd on the one farthest from those before, by the smallest,
    then by the mean Hamming distance."""
    chosen = list(affine_maps())
    if count > len(chosen):
        every = torch.tensor(list(all_orders(range(TILES))), dtype=torch.int8).T.contiguous()
        smallest = torch.full((every.shape[1],), TILES, dtype=torch.int8)
        total = torch.zeros(every.shape[1], dtype=torch.int32)
        for i in range(count):
            if i == len(chosen):
                chosen.append(every[:, (smallest.int() * TILES * count + total).argmax()].long())
            distance = torch.zeros_like(smallest)
            for place, value in zip(every, chosen[i].tolist(), strict=True):
                distance += place != value
            smallest = torch.minimum(smallest, distance)
            total += distance
    return torch.stack(chosen[:count])


class Jigsaw(Method):
    """
    encoder:      a convolutional network that is applied to each tile, see models.on_patches.
    views:        one view of each image, larger than 3 x 3 tiles, see data.images.tiles.
    permutations: number of permutations; 100 in most of the paper's experiments, up to 1,000.
    dim, hidden:  of the features of a tile, and of the layer above all nine: 512 and 4,096 in the paper.
    """

    unit = "images"
    card = Card(
        about="Jigsaw: nine tiles of an image in disorder, and the network says which permutation they are in. The "
        "encoder of the tiles is exported: it cuts an image into tiles, encodes each, and gives the mean. The "
        "classifier, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The encoder was trained on single tiles, each with a mean of zero and a deviation of one, without "
        "labels: evaluate it on your task before you rely on it.",
        trivial="chance: log(permutations)",
        snippets=image_encoders.SNIPPETS,
        tags=("jigsaw",),
    )

    def __init__(
        self,
        encoder: PatchEncoderModel,
        views: Views,
        permutations: int = 64,
        dim: int = 128,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.encoder, self.views = encoder, views
        self.tile = nn.Sequential(heads.mlp([image_encoders.width(encoder), dim], "none"), nn.ReLU())
        self.classifier = heads.mlp([TILES * dim, hidden, permutations], "none")
        nn.init.zeros_(self.classifier[-1].weight)  # the first prediction is chance
        nn.init.zeros_(self.classifier[-1].bias)
        self.register_buffer("permutations", permutation_set(permutations))

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view, tiles and
        permutation are drawn."""
        cut, order = self.puzzle(pixel_values, key)
        logits, features = self.solve(cut, order)
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits.float(), order)
        found = (logits.argmax(1) == order).float().mean().detach()
        return Output(loss, {"accuracy": found}, features.detach().float(), math.log(len(self.permutations)))

    def puzzle(self, pixel_values: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(tiles, order): (batch, 9, 3, side, side), not shuffled; (batch,) the number of the permutation."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        drawn = draws.uniform(key, ORDER)
        return tiles.cut(pixels, key, GRID, self.encoder.config.patch_size), (len(self.permutations) * drawn).long()

    def shuffled(self, cut: Tensor, order: Tensor) -> Tensor:
        """The tiles with the permutation `order`: at place i is the tile of the cell permutations[order, i]."""
        places = self.permutations[order].view(*cut.shape[:2], 1, 1, 1).expand_as(cut)
        return cut.gather(1, places)

    def solve(self, cut: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, features): (batch, permutations), and (batch, width), the mean over tiles."""
        shown = tiles.standardised(self.shuffled(cut, order))
        features = image_encoders.features(self.encoder.backbone, shown.flatten(0, 1)).unflatten(0, shown.shape[:2])
        return self.classifier(self.tile(features).flatten(1)), features.mean(1)

    @torch.no_grad()
    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Images, their shuffled tiles, and the tiles in the order that the predicted permutation gives them."""
        cut, order = self.puzzle(pixel_values, key)
        predicted = self.solve(cut, order)[0].argmax(1)
        shuffled = self.shuffled(cut, order)
        back = self.permutations[predicted].argsort(1).view(*cut.shape[:2], 1, 1, 1).expand_as(cut)
        columns = {"shuffled": shuffled, "put together": shuffled.gather(1, back)}
        image = self.views.to_unit_range(self.views.whole(pixel_values))
        return {"image": image} | {n: self.views.to_unit_range(tiles.together(x)) for n, x in columns.items()}

    def exported(self) -> PatchEncoderModel:
        return self.encoder
