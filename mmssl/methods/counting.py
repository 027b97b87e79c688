"""Counting: what is counted in the four tiles of an image adds up to what is counted in the whole.

Noroozi et al. 2017, arXiv:1708.06734. An encoder and a head give a vector of counts, none of them negative, of pictures
of one size: the image, made smaller, and its four quarters. Their squared distance should be small, and that of the
tiles to another image larger than a margin: counts of zero would satisfy the first alone. Two cures of shortcuts: the
filter that makes the image smaller is drawn at random, so that its sharpness does not tell the whole from a tile; most
images are grey, so that the fringes of a lens tell nothing. Differs: the margin is taken to every other image of the
batch, of all processes, instead of to one; tiles are blurred as much as the filters do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.distributed import gather, rank
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILTERS = ("area", "bicubic", "bilinear")
BLURS = (0.0, 0.4, 0.5)  # deviation in pixels of the blur that leaves a tile as sharp as each filter leaves the whole
TILES = 4
GRID = 6  # the figure shows so many counts, squared


def shrinking(side: int) -> Tensor:
    """(filters, side, 2 * side): matrices that halve the size of a column of pixels."""
    columns = torch.eye(2 * side)[None, None]
    smooth = {"antialias": True, "align_corners": False}
    found = [
        F.interpolate(columns, (side, 2 * side), mode=name, **({} if name == "area" else smooth)) for name in FILTERS
    ]
    return torch.cat(found)[:, 0]


def blurring(side: int) -> Tensor:
    """(blurs, side, side): matrices that blur a column of pixels with a Gaussian."""
    squares = (torch.arange(side)[:, None] - torch.arange(side)).square()
    weights = torch.stack([torch.exp(-squares / (2 * max(sigma, 1e-3) ** 2)) for sigma in BLURS])
    return weights / weights.sum(2, keepdim=True)


def smoothed(pixels: Tensor, key: Tensor, filters: Tensor, blurs: Tensor) -> Tensor:
    """(batch, 5, 3, side, side): the whole image at half its size, and its four tiles, row by row. Each picture is
    smoothed by a draw of its own, so that no filter is more frequent for tiles than for the whole.

    pixels: (batch, 3, 2 * side, 2 * side). key: (batch,) int64. filters, blurs: from `shrinking` and `blurring`.
    """
    streams = STREAMS_PER_VIEW + torch.arange(1 + TILES, device=key.device)  # those before belong to the view
    chosen = (len(filters) * draws.uniform(key[:, None], streams)).long()
    smaller, blur = filters[chosen[:, :1], None], blurs[chosen[:, 1:], None]
    halves = pixels.unflatten(3, (2, -1)).unflatten(2, (2, -1))  # (batch, 3, 2, side, 2, side)
    tiles = halves.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return torch.cat([smaller @ pixels[:, None] @ smaller.mT, blur @ tiles @ blur.mT], 1)


def counting_loss(whole: Tensor, tiles: Tensor, margin: float) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metrics): the squared distance of each image's tiles to its whole, and by how much that to each other
    image is less than the margin, the mean over all others.

    whole: (batch, counts). tiles: (batch, counts), the sum over the four. Other images come from all processes. The
    metrics: both distances, and how often an image's own whole is nearer than another's; a tie counts half. Raises
    BadInput if there is no other image.
    """
    everyone = gather(whole)
    if len(everyone) < 2:
        raise BadInput("a batch of one image has no other to compare with; raise --per_device_train_batch_size")
    own = (whole - tiles).square().sum(1)
    squares = tiles.square().sum(1)[:, None] + everyone.square().sum(1)
    distances = (squares - 2 * tiles @ everyone.T).clamp(min=0)
    row = torch.arange(len(whole), device=whole.device)
    itself = F.one_hot(row + rank() * len(whole), len(everyone))

    def mean_over_others(values: Tensor) -> Tensor:
        return (values * (1 - itself)).sum() / (values.numel() - len(whole))

    loss = own.mean() + mean_over_others((margin - distances).clamp(min=0))
    nearer = mean_over_others((1 + (distances - own[:, None]).sign()) / 2)
    return loss, {"own_nearer": nearer, "distance_own": own.mean(), "distance_others": mean_over_others(distances)}


class Counting(Method):
    """
    encoder:   an image encoder, see models.image_encoders.
    views:     one view of each image, square, of an even side; the encoder sees pictures of half of it.
    counts:    dimension of the vector of counts: 1,000 in the paper.
    margin:    least squared distance of the counts of two images: 10 in the paper.

    Raises BadInput if the views have no such size.
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="Counting: what is counted in the four tiles of an image adds up to what is counted in the whole, and "
        "differs from what is counted in other images. The encoder is exported; the head that counts, to continue "
        "from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained without labels; what it counts has no names. Evaluate it on your task before you "
        "rely on it.",
        trivial="the same counts for all images: the margin",
        snippets=image_encoders.SNIPPETS,
        tags=("counting",),
    )

    def __init__(self, encoder: PreTrainedModel, views: Views, counts: int = 1000, margin: float = 10.0) -> None:
        super().__init__()
        size = views.views[0].size
        if not isinstance(size, int) or size % 2:
            raise BadInput(f"a view of size {size}: it is cut into four tiles; give one even number")
        self.encoder, self.views, self.margin, self.side = encoder, views, margin, size // 2
        width = image_encoders.width(encoder)
        self.head = heads.mlp([width, width, counts], norm="layer")
        self.register_buffer("filters", shrinking(self.side), persistent=False)
        self.register_buffer("blurs", blurring(self.side), persistent=False)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view and the
        filters are drawn."""
        features, counts = self.count(self.pictures(pixel_values, key))
        return {"whole": counts[:, 0], "tiles": counts[:, 1:].sum(1), "features": features[:, 0]}

    def loss(self, whole: Tensor, tiles: Tensor, features: Tensor) -> Output:
        """whole: (batch, counts), fp32. tiles: (batch, counts), fp32, the sum over the four. features: (batch, width)
        of the whole."""
        loss, metrics = counting_loss(whole, tiles, self.margin)
        metrics = {name: value.detach() for name, value in metrics.items()}
        # not the counts: a dozen of them are enough to keep images a margin apart, which looks like a collapse
        return Output(loss, metrics, features.detach().float(), trivial_loss=self.margin)

    def pictures(self, pixel_values: Tensor, key: Tensor) -> Tensor:
        """(batch, 5, 3, side, side), normalised: the whole image, and its four tiles, row by row."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        with torch.autocast(pixels.device.type, enabled=False):  # in bf16 a pixel keeps only 8 bits
            return smoothed(pixels, key, self.filters, self.blurs)

    def count(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(features, counts) of each picture. (batch, pictures, 3, side, side) -> (batch, pictures, width) and (batch,
        pictures, counts), fp32, none negative."""
        features = image_encoders.features(self.encoder, pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
        return features, F.relu(self.head(features).float())

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """The images in the order of their counts, smallest sum first, each with the counts in which the images differ
        most, as a square of grey pixels: those of the whole, of its tiles together, and of the next image. White is the
        largest value of each count. Arguments as in `forward`."""
        embedded, pixels = self.embed(pixel_values, key), self.views.whole(pixel_values)
        order = embedded["whole"].sum(1).argsort()
        whole, tiles = embedded["whole"][order], embedded["tiles"][order]
        shown = whole.std(0).topk(min(GRID, int(len(whole[0]) ** 0.5)) ** 2)[1].sort()[0]
        brightest = torch.stack([whole, tiles])[..., shown].amax((0, 1)).clamp(min=1e-6)

        def square(counts: Tensor) -> Tensor:
            side = int(len(shown) ** 0.5)
            return (counts[:, shown] / brightest).view(-1, 1, side, side).expand(-1, 3, -1, -1)

        return {
            "image": self.views.to_unit_range(pixels[order]),
            "counts": square(whole),
            "of its tiles": square(tiles),
            "of the next": square(whole.roll(-1, 0)),
        }

    def exported(self) -> PreTrainedModel:
        return self.encoder
