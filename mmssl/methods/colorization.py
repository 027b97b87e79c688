"""Colorization: from the grey image, predict the distribution of the colour at each position.

Zhang et al. 2016, arXiv:1603.08511. The colour ab of Lab is classified into 313 bins (data.images.lab), with a soft
target over the 5 nearest; rare colours weigh more (section 2.2); the colour shown is the annealed mean (section 2.3).
Images without colour are left out of the loss. The encoder gets L as a grey image of three equal channels, normalised
as the exported processor does. Differs: a stock encoder, whose stages are all read by a decoder of two layers
(models.hypercolumns), in place of a VGG of one stride; targets are means over squares of 4 x 4 pixels; the soft
encodings smooth the empirical distribution, in place of a separate Gaussian; and the first kernels stay among those
that see grey alone (models.colour_directions), so that the exported encoder sees any picture as its grey form.
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
from mmssl.models import colour_directions, hypercolumns, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mmssl.data.images.pictures import Pictures

STRIDE = 4  # pixels of an image between two predictions: section 3.1, 56 positions for 224 pixels
REBALANCING = 0.5  # lambda of equation 4
TEMPERATURE = 0.38  # of the annealed mean, section 2.3
COLOURFUL = 5.0  # an image with no a or b beyond this is grey, as in the authors' code
CHUNK, COUNTED = 256, 10_000  # images whose colours are counted at once, and at most


def targets(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(L, ab, coloured): (batch, 1, height, width); (batch, rows, columns, 2), the mean colours of squares; (batch,)
    bool. pixels: (batch, 3, height, width) in [0, 1]."""
    found = lab.from_srgb(pixels)
    size = [max(1, side // STRIDE) for side in pixels.shape[2:]]
    ab = F.adaptive_avg_pool2d(found[:, 1:], size).permute(0, 2, 3, 1)
    return found[:, :1], ab, (ab.abs() > COLOURFUL).flatten(1).any(1)


@torch.no_grad()
def count_colours(pictures: Pictures, views: Views) -> Tensor:
    """(313, 313) fp32, of sum 1: row i is the sum of the soft encodings of all colours whose nearest bin is i, over the
    whole images, grey ones left out. Raises BadInput if all are grey."""
    total, tables = torch.zeros(lab.BINS, lab.BINS, dtype=torch.float64), (lab.bins(), lab.candidates())
    for rows in torch.arange(min(len(pictures), COUNTED)).split(CHUNK):
        pixels = views.to_unit_range(views.whole(pictures.__getitems__(rows.tolist())["pixel_values"]))
        _, ab, coloured = targets(pixels)
        index, weight = lab.soft_encoding(ab[coloured].flatten(0, -2), *tables)
        total.view(-1).index_add_(0, (index[:, :1] * lab.BINS + index).flatten(), weight.flatten().double())
    if not total.any():
        raise BadInput("all images are grey, so there are no colours to predict: choose --dataset with coloured images")
    return (total / total.sum()).float()


def colour_errors(predicted: Tensor, true: Tensor, counts: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Root mean square of the distance in ab over the positions that count, and the same with the weights of
    rebalancing, as the loss has them. predicted, true: (n, 2). counts: (n,), 1 or 0. weight: (n,)."""
    square = (predicted - true).square().sum(1)

    def mean(weight: Tensor) -> Tensor:
        return (weight @ square / weight.sum().clamp(min=1e-6)).sqrt()

    return {"colour_error": mean(counts), "rebalanced_colour_error": mean(counts * weight)}


def rebalancing(counted: Tensor) -> tuple[Tensor, Tensor]:
    """(weight, constant), each (313,): equation 4, the weight of a colour by its nearest bin, 1 on average over the
    counted colours; and the distribution that is best without an image, under these weights. counted: see
    `count_colours`."""
    weight = 1 / ((1 - REBALANCING) * counted.sum(0) + REBALANCING / lab.BINS)
    weight = weight / (counted.sum(1) @ weight)
    constant = (weight @ counted).clamp(min=1e-6)  # a colour that was never seen has a finite logarithm, too
    return weight, constant / constant.sum()


class Colorization(Method):
    """
    encoder: an image encoder, see models.image_encoders; a ResNet or a ViT.
    views:   one view of each image, without changes of colour.
    counted: the colours of the training images, see `count_colours`.
    dim:     of the decoder's hidden layer.
    """

    unit = "images"
    card = Card(
        about="Colorization: from the grey image, predict the distribution of the colour at each position. The encoder "
        "is exported: it takes a picture as any other encoder does, and sees it in grey (the lightness, in three equal "
        "channels, in training). The decoder, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The encoder does not see colours: two pictures of the same grey form have the same features. It was "
        "trained without labels: evaluate it on your task before you rely on it.",
        trivial="the colours of the training images",
        snippets=image_encoders.SNIPPETS,
        tags=("colorization",),
    )

    def __init__(self, encoder: PreTrainedModel, views: Views, counted: Tensor, dim: int = 256) -> None:
        super().__init__()
        self.encoder, self.views = encoder, views
        grey = colour_directions.projection(colour_directions.GREY, views.std)
        weight, constant = rebalancing(counted)
        self.register_buffer("sees_grey", grey, persistent=False)
        self.register_buffer("bins", lab.bins(), persistent=False)
        self.register_buffer("candidates", lab.candidates(), persistent=False)
        self.register_buffer("weight_of_bin", weight)
        self.register_buffer("constant", constant)
        colour_directions.restrict(encoder, grey)
        self.decoder = hypercolumns.Hypercolumns(hypercolumns.channels(encoder), dim, lab.BINS)
        with torch.no_grad():  # the first prediction is the best one that needs no image
            self.decoder.classify.bias.copy_(constant.log())

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view is drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        lightness, ab, coloured = targets(self.views.to_unit_range(pixels))
        logits, features = self.predict(lightness, ab.shape[1:3])
        with torch.autocast(pixels.device.type, enabled=False):
            index, share = lab.soft_encoding(ab.flatten(0, -2), self.bins, self.candidates)
            # grey images count as zero: the mean over the others would not be a mean over samples, whose gradient does
            # not depend on the number of processes
            counts = coloured[:, None, None].expand(ab.shape[:3]).flatten().float()
            weight = (self.weight_of_bin[index[:, 0]] * counts)[:, None] * share
            scores = logits.float().flatten(0, -2)
            # the cross entropy, without the logarithms of all 313 probabilities
            loss = (weight.sum(1) * scores.logsumexp(1) - (weight * scores.gather(1, index)).sum(1)).mean()
            trivial = -(weight * self.constant.log()[index]).sum(1).mean()
        metrics = {"grey_images": (~coloured).float().mean()}
        if not self.training:
            weight = self.weight_of_bin[index[:, 0]]
            metrics |= colour_errors(self.colours(scores), ab.flatten(0, -2), counts, weight)
        return Output(loss, metrics, features.detach().float(), trivial.detach())

    def predict(self, lightness: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(logits, features): (batch, rows, columns, 313) and (batch, width). lightness: (batch, 1, height, width) in
        [0, 100]. size: (rows, columns)."""
        mean, std = self.views.mean.view(3, 1, 1), self.views.std.view(3, 1, 1)
        found = hypercolumns.maps(self.encoder, (lightness / lab.LARGEST_L - mean) / std)
        return self.decoder(found, tuple(size)), found[-1].flatten(1)

    def colours(self, logits: Tensor) -> Tensor:
        """(..., 313) -> (..., 2): the predicted ab."""
        return lab.annealed_mean(logits, self.bins, TEMPERATURE)

    @torch.no_grad()
    def errors_of_grey(self, pictures: Pictures) -> dict[str, float]:
        """The errors of images that stay grey, of the whole `pictures` that have colours."""
        true = []
        for rows in torch.arange(len(pictures)).split(CHUNK):
            pixels = self.views.whole(pictures.__getitems__(rows.tolist())["pixel_values"])
            _, ab, coloured = targets(self.views.to_unit_range(pixels))
            true.append(ab[coloured].flatten(0, -2))
        colours = torch.cat(true)
        index, _ = lab.soft_encoding(colours, self.bins, self.candidates)
        weight = self.weight_of_bin[index[:, 0]]
        found = colour_errors(torch.zeros_like(colours), colours, torch.ones_like(weight), weight)
        return {name: value.item() for name, value in found.items()}

    @torch.no_grad()
    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Images, their grey form, and this form with the predicted and with the true colours, as fine as predictions
        are."""
        image = self.views.to_unit_range(self.views.whole(pixel_values))
        lightness, ab, _ = targets(image)
        logits, _ = self.predict(lightness, ab.shape[1:3])

        def painted(colours: Tensor) -> Tensor:
            fine = F.interpolate(colours.permute(0, 3, 1, 2), lightness.shape[2:], mode="bilinear")
            return lab.to_srgb(torch.cat([lightness, fine], 1))

        return {
            "image": image,
            "input": (lightness / lab.LARGEST_L).expand(-1, 3, -1, -1),
            "predicted": painted(self.colours(logits)),
            "true": painted(ab),
        }

    def after_step(self) -> None:
        colour_directions.restrict(self.encoder, self.sees_grey)

    def exported(self) -> PreTrainedModel:
        return self.encoder
