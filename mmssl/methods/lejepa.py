"""LeJEPA: give all views of an image one embedding, and all images together those of a standard normal distribution.

Balestriero and LeCun 2025, arXiv:2511.08544. The first term pulls the embeddings of an image's views to the mean of its
global views; the second, SIGReg, tests in random directions whether the embeddings are standard normal, which no
collapsed embedding is. There is no teacher, no stop-gradient and no schedule, and one weight. Differs: the directions
are drawn from the keys of the batch, so that all processes have the same ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images.views import Views
from mmssl.distributed import gather, world_size
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders, memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIMIT, KNOTS = 5.0, 17  # the integral goes from -LIMIT to LIMIT, by the trapezoid rule on KNOTS points (algorithm 1)


def directions(seed: Tensor, dim: int, number: int) -> Tensor:
    """(dim, number) float32: directions that are uniform on the sphere, a function of `seed`, a scalar int64."""
    uniform = draws.uniform(seed, torch.arange(dim * number, device=seed.device))
    normal = torch.special.ndtri(uniform.clamp(min=2.0**-25))  # not 0, whose quantile is infinite
    return F.normalize(normal.view(dim, number), dim=0)


def epps_pulley(samples: Tensor) -> Tensor:
    """The Epps-Pulley statistic of each column against the standard normal distribution: the number of samples N times
    the integral over t of |mean of exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), with gradient.

    samples: (..., batch, columns) float32. The samples are those of all processes. Returns (..., columns). About 1.06
    for standard normal samples, at any N; at most 2.5 N.
    """
    # the integrand is even, so that t above 0 is enough; at t = 0 it is 0
    step = 2 * LIMIT / (KNOTS - 1)
    knots = [step * i for i in range(1, (KNOTS + 1) // 2)]
    waves = [wave(t * samples).mean(-2) for t in knots for wave in (torch.cos, torch.sin)]
    real, imaginary = gather(torch.stack(waves)[None]).mean(0).unflatten(0, (-1, 2)).unbind(1)  # (knots, ..., columns)
    statistic = torch.zeros_like(real[0])
    for i, t in enumerate(knots):
        normal = math.exp(-(t**2) / 2)
        error = (real[i] - normal).square() + imaginary[i].square()
        # twice the trapezoid rule's weight, for t and -t
        statistic = statistic + (step if t == LIMIT else 2 * step) * normal * error
    return world_size() * samples.shape[-2] * statistic


class LeJEPA(Method):
    """
    encoder:        an image encoder, see models.image_encoders.
    views:          of each image: the global views, then the local ones, as of views.multi_crop.
    global_views:   number of global views.
    hidden_dim, projection_dim: inner and outer width of the projector's three layers.
    weight:         lambda, of SIGReg; 1 - lambda is that of the distance between views.
    slices:         number of random directions.
    norm:           of the projector, see models.heads.
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="LeJEPA: give all views of an image one embedding, and all images together those of a standard normal "
        "distribution. The encoder is exported; the projector, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="one embedding for all images",
        snippets=image_encoders.SNIPPETS,
        tags=("lejepa",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        global_views: int = 2,
        hidden_dim: int = 1024,
        projection_dim: int = 64,
        weight: float = 0.05,
        slices: int = 1024,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if not 1 <= global_views <= len(views.views):
            raise BadInput(f"global_views {global_views}: there are {len(views.views)} views; give one of them or more")
        image_encoders.check_views(encoder, views)
        self.encoder, self.views, self.global_views = encoder, views, global_views
        self.weight, self.slices = weight, slices
        sizes = f"--slices {slices}, --projection_dim {projection_dim}"
        memory.refuse_too_large(slices * projection_dim, sizes, each=32)  # and what the draws take
        self.projector = heads.mlp([image_encoders.width(encoder), hidden_dim, hidden_dim, projection_dim], norm)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        features = image_encoders.features_of_views(self.encoder, self.views(pixel_values, key))
        embeddings = self.projector(torch.cat(features)).float().unflatten(0, (len(features), -1))
        return {"embeddings": embeddings.transpose(0, 1), "key": key}

    def loss(self, embeddings: Tensor, key: Tensor) -> Output:
        """Algorithm 2. embeddings: (batch, views, projection_dim), the global views first. key: (batch,) int64."""
        with torch.autocast(embeddings.device.type, enabled=False):
            centre = embeddings[:, : self.global_views].mean(1, keepdim=True)
            prediction = (embeddings - centre).square().mean()
            sliced = directions(gather(key).sum(), embeddings.shape[2], self.slices)
            sigreg = epps_pulley(embeddings.transpose(0, 1) @ sliced).mean()  # each view by itself
            loss = (1 - self.weight) * prediction + self.weight * sigreg
            constant = self.weight * epps_pulley(embeddings.new_zeros(len(embeddings), 1)).mean()
        metrics = {"prediction": prediction.detach(), "sigreg": sigreg.detach()}
        return Output(loss, metrics, embeddings[:, 0].detach(), trivial_loss=constant)

    def exported(self) -> PreTrainedModel:
        return self.encoder
