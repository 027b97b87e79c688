"""VAE: encode an image as a distribution over codes, from which a decoder gives the image a likelihood.

Kingma & Welling 2013, arXiv:1312.6114: the evidence lower bound (equation 10), with the KL divergence to N(0, I) in
closed form (appendix B) and one reparametrised sample. beta-VAE (Higgins et al. 2017) weighs the divergence with beta.
Likelihoods: of 8-bit values, a logistic distribution over the 256 bins with a learned scale (Kingma et al. 2016,
arXiv:1606.04934, section 5.1, as in PixelCNN++, arXiv:1701.05517, equation 2); or of binarised values, a Bernoulli
distribution. Differs: a convolutional encoder and decoder; the noise is a function of seed, epoch and image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images.views import Views
from mmssl.method import Card, Output
from mmssl.models import image_encoders
from mmssl.models.decoder import Decoder
from mmssl.models.reconstructing import Reconstructing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIKELIHOODS = ("logistic", "bernoulli")
NOISE = 1 << 16  # first stream of the sample's draws, far after those of the image's view
ACTIVE = 0.01  # variance over images of the mean of a number that is in use (Burda et al. 2015, arXiv:1509.00519, 5.2)
SAMPLES, BETWEEN = 4, 6  # columns of the figure
LARGEST_LOG_VARIANCE = 10.0  # against overflow in the first steps


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(batch,), in nats: KL(N(mean, variance) || N(0, I)), appendix B. mean, log_variance: (batch, dim)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def discretised_logistic(values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """The log probability of each value, in nats: the mass that a logistic distribution gives to its bin of 1/255; the
    first and the last bin reach to infinity. values: multiples of 1/255 in [0, 1]. mean, scale: broadcast to them."""
    upper = (values - mean + 0.5 / 255) / scale
    lower = (values - mean - 0.5 / 255) / scale
    # log(sigmoid(upper) - sigmoid(lower)) without the difference of nearly equal numbers
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
    first, last = F.logsigmoid(upper), F.logsigmoid(-lower)
    return torch.where(values < 0.5 / 255, first, torch.where(values > 1 - 0.5 / 255, last, inside))


class VAE(Reconstructing):
    """
    encoder:    an image encoder, see models.image_encoders.
    views:      one view of each image, in training.
    size:       (height, width) of the images.
    code_dim:   numbers in the code.
    beta:       weight of the KL divergence; 1: the bound.
    likelihood: one of LIKELIHOODS.
    """

    unit = "images"
    card = Card(
        about="A variational autoencoder: an image is encoded as a distribution over codes, from which a decoder gives "
        "the image a likelihood. The encoder is exported; the layer to the code and the decoder, to continue from, are "
        "in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained to keep what reconstructs pixels, which need not be what tells objects apart: "
        "evaluate it on your task before you rely on it.",
        trivial="one distribution for each pixel",
        snippets=image_encoders.SNIPPETS,
        tags=("vae",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        size: tuple[int, int],
        code_dim: int = 64,
        beta: float = 1.0,
        likelihood: str = "logistic",
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.beta, self.likelihood = encoder, views, beta, likelihood
        self.posterior = nn.Linear(image_encoders.width(encoder), 2 * code_dim)
        self.decoder = Decoder(code_dim, size)
        if likelihood == "logistic":
            self.log_scale = nn.Parameter(torch.full((3,), math.log(0.1)))  # a vector has no weight decay

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which the view and the sample of
        each image are drawn. The loss is the bound in bits for each value of an image."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        mean, log_variance = self.encode(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            noise = draws.normal(key[:, None], NOISE + torch.arange(mean.shape[1], device=key.device))
            code = mean + (0.5 * log_variance).exp() * noise
        logits = self.decoder(code).float()
        shown = logits if self.training else self.decoder(mean).float()  # without noise, as PCA has none
        with torch.autocast(pixels.device.type, enabled=False):
            values = self.values(pixels)
            negative, kl = -self.log_likelihood(values, logits), kl_to_normal(mean, log_variance)
            nats = values[0].numel() * math.log(2)  # in one bit per value
            loss = (negative + self.beta * kl).mean() / nats
            metrics = {
                "bits_per_dim": (negative + kl).mean() / nats,
                "kl": kl.mean(),
                "active_units": (mean.var(0) > ACTIVE).sum().float(),
                "squared_error": self.errors(self.views.normalised(shown.sigmoid()), pixels, key).mean(),
            }
            trivial = self.of_each_pixel(values)
        return Output(loss, {k: v.detach() for k, v in metrics.items()}, mean.detach(), trivial)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance) of the code, (batch, code_dim) each. pixels: (batch, 3, height, width), normalised."""
        mean, log_variance = self.posterior(image_encoders.features(self.encoder, pixels)).float().chunk(2, 1)
        return mean, log_variance.clamp(max=LARGEST_LOG_VARIANCE)

    def values(self, pixels: Tensor) -> Tensor:
        """Normalised pixels as multiples of 1/255 in [0, 1], or binarised."""
        values = self.views.to_unit_range(pixels)
        return (values > 0.5).float() if self.likelihood == "bernoulli" else (255 * values).round() / 255

    def log_likelihood(self, values: Tensor, logits: Tensor) -> Tensor:
        """(batch,), in nats. values, logits: (batch, 3, height, width); the mean is sigmoid(logits)."""
        if self.likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(logits, values, reduction="none").sum((1, 2, 3))
        return discretised_logistic(values, logits.sigmoid(), self.log_scale.exp()[:, None, None]).sum((1, 2, 3))

    @torch.no_grad()
    def of_each_pixel(self, values: Tensor) -> Tensor:
        """The loss of a decoder that ignores the code: the mean of each pixel of the batch, and one scale for each
        channel, as the decoder has."""
        mean = values.mean(0)
        if self.likelihood == "bernoulli":
            return F.binary_cross_entropy(mean.expand_as(values), values) / math.log(2)
        deviation = (values - mean).square().mean((0, 2, 3), keepdim=True).sqrt()
        scale = deviation * math.sqrt(3) / math.pi  # of the logistic distribution of this deviation
        return -discretised_logistic(values, mean, scale.clamp(min=0.1 / 255)).mean() / math.log(2)

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        pixels = self.views.whole(pixel_values)
        mean, _ = self.encode(pixels)
        count, dim = mean.shape
        columns = {"image": self.views.to_unit_range(pixels), "reconstructed": self.decoder(mean).float().sigmoid()}
        rows, numbers = torch.arange(count, device=key.device)[:, None], torch.arange(dim, device=key.device)
        for i in range(SAMPLES):  # the same noise in every run
            columns["samples" if i == 0 else " " * i] = self.decoder(
                draws.normal(rows * SAMPLES + i, numbers)
            ).sigmoid()
        other = mean.roll(-1, 0)
        for i in range(BETWEEN):
            share = i / (BETWEEN - 1)
            name = {0: "this", BETWEEN - 1: "the next"}.get(i, f"{share:.1f}")
            columns[name] = self.decoder(torch.lerp(mean, other, share)).float().sigmoid()
        return columns

    def sampled(self, count: int) -> Tensor:
        """(count, 3, height, width) in [0, 1]: decoded from codes of N(0, I), the same in every run."""
        rows = torch.arange(count, device=self.posterior.weight.device)[:, None]
        numbers = torch.arange(self.posterior.out_features // 2, device=rows.device)
        return self.decoder(draws.normal(rows, numbers)).float().sigmoid()

    def exported(self) -> PreTrainedModel:
        return self.encoder
