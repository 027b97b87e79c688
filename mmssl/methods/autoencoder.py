"""Autoencoders: a code much smaller than an image, or a sparse one, from which a decoder reconstructs the image.

undercomplete  The code is narrow.
linear         So is the network: its code spans the subspace of the principal components (Baldi & Hornik 1989).
sparse         Few numbers of the code are active for an image: a KL divergence to the activation rho (Ng 2011, CS294A
               lecture notes, section 3), or their absolute size relative to the code's length (L1).
denoising      The clean image from one with hidden pixels (Vincent et al. 2008) or with Gaussian noise (Vincent et al.
               2010, JMLR 11).

Differs: encoder and decoder are convolutional and trained as one, not layer by layer; noise is a function of seed,
epoch and image.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images import decoding
from mmssl.data.images.views import Views
from mmssl.distributed import gather
from mmssl.errors import BadInput
from mmssl.method import Card, Output
from mmssl.models import image_encoders
from mmssl.models.decoder import Decoder
from mmssl.models.image_encoders import FEATURES, SNIPPETS
from mmssl.models.reconstructing import Reconstructing

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

    from mmssl.data.images.pictures import Pictures
    from mmssl.models.image_encoders import EncoderArgs

KINDS = ("undercomplete", "linear", "sparse", "denoising")
PENALTIES = ("kl", "l1")
CORRUPTIONS = ("mask", "gaussian")
MEAN_OF = 1000  # training images
NOISE = 1 << 16  # first stream of the noise's draws, far after those of the image's view


def bernoulli_kl(rho: float, activation: Tensor) -> Tensor:
    """KL(rho || activation) of two coins, in nats, summed over the last axis. activation: (dim,) in [0, 1]."""
    activation = activation.clamp(1e-6, 1 - 1e-6)
    each = rho * (math.log(rho) - activation.log()) + (1 - rho) * (math.log1p(-rho) - torch.log1p(-activation))
    return each.sum(-1)


def sparseness(code: Tensor) -> Tensor:
    """(batch,): the sum of absolute values relative to the code's length, from 1, one number active, to the square root
    of the dimension, all equally (Hurley & Rickard 2009, arXiv:0811.4706). The sum alone would shrink with the code's
    scale, which the norms of the decoder take away. code: (batch, dim)."""
    return code.abs().sum(1) / code.norm(dim=1).clamp(min=1e-6)


class Autoencoder(Reconstructing):
    """
    encoder:    an image encoder, see models.image_encoders; for `linear` a LinearImageModel, whose output is the code.
    views:      one view of each image, in training.
    kind:       one of KINDS.
    code_dim:   numbers in the code.
    penalty:    of `sparse`, one of PENALTIES, times `weight`. rho: the mean activation that "kl" asks of each number,
                sigmoids in [0, 1]; with "l1" they are rectified.
    corruption: of `denoising`, one of CORRUPTIONS. noise: fraction of the pixels that are hidden, or the deviation of
                the noise, in units of normalised pixels.
    """

    unit = "images"
    card = Card(
        about="An autoencoder: a code from which a decoder reconstructs the image. The encoder is exported; the layer "
        "to the code and the decoder, to continue from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained to keep what reconstructs pixels, which need not be what tells objects apart: "
        "evaluate it on your task before you rely on it.",
        trivial="the mean image",
        snippets=SNIPPETS,
        tags=("autoencoder",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        size: tuple[int, int],
        kind: str = "undercomplete",
        code_dim: int = 64,
        penalty: str = "kl",
        weight: float = 1e-3,
        rho: float = 0.05,
        corruption: str = "mask",
        noise: float = 0.5,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.kind, self.penalty = encoder, views, kind, penalty
        self.weight, self.rho, self.corruption, self.noise = weight, rho, corruption, noise
        # the mean activation of a batch is that of all its micro-batches
        self.couples_samples = kind == "sparse" and penalty == "kl"
        if kind == "linear":
            self.card = replace(self.card, snippets={FEATURES: SNIPPETS[FEATURES]})  # no class to fine-tune
            self.code = nn.Identity()
            self.decoder = nn.Sequential(nn.Linear(code_dim, 3 * math.prod(size)), nn.Unflatten(1, (3, *size)))
            return
        layers = [nn.Linear(image_encoders.width(encoder), code_dim)]
        if kind == "sparse":
            layers.append(nn.Sigmoid() if penalty == "kl" else nn.ReLU())
        self.code, self.decoder = nn.Sequential(*layers), Decoder(code_dim, size)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which the view and the noise of each
        image are drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        features = image_encoders.features(self.encoder, self.given(pixels, key))
        code = self.code(features)
        error = self.errors(self.decoder(code).float(), pixels, key)
        return {"error": error, "code": code.float(), "features": features, "target": pixels}

    def loss(self, error: Tensor, code: Tensor, features: Tensor, target: Tensor) -> Output:
        """error: (batch,). code: (batch, code_dim). features: (batch, width). target: (batch, 3, height, width)."""
        loss, metrics = error.mean(), {"squared_error": error.detach().mean()}
        if self.kind == "sparse":
            with torch.autocast(code.device.type, enabled=False):
                everyone = gather(code)
                kl = self.penalty == "kl"
                penalty = bernoulli_kl(self.rho, everyone.mean(0)) if kl else sparseness(code).mean()
            loss = loss + self.weight * penalty
            active = everyone.detach() > (2 * self.rho if kl else 0)
            metrics |= {"penalty": penalty.detach(), "active_fraction": active.float().mean()}
        trivial = target.detach().var(0, correction=0).mean()  # the error of the batch's mean image
        return Output(loss, metrics, features.detach().float(), trivial)

    def given(self, pixels: Tensor, key: Tensor) -> Tensor:
        """(batch, 3, height, width): what the encoder gets of normalised pixels."""
        if self.kind != "denoising":
            return pixels
        if self.corruption == "mask":  # whole pixels become the mean colour
            positions = torch.arange(math.prod(pixels.shape[2:]), device=key.device)
            hidden = draws.uniform(key[:, None], NOISE + positions) < self.noise
            return pixels.masked_fill(hidden.view(len(pixels), 1, *pixels.shape[2:]), 0.0)
        values = torch.arange(math.prod(pixels.shape[1:]), device=key.device)
        return pixels + self.noise * draws.normal(key[:, None], NOISE + values).view_as(pixels)

    def reconstructed(self, pixels: Tensor, key: Tensor) -> Tensor:
        """(batch, 3, height, width), normalised."""
        return self.decoder(self.code(image_encoders.features(self.encoder, self.given(pixels, key)))).float()

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        pixels = self.views.whole(pixel_values)
        columns = {"image": pixels}
        if self.kind == "denoising":
            columns["given"] = self.given(pixels, key)
        columns["reconstructed"] = self.reconstructed(pixels, key)
        return {title: self.views.to_unit_range(images) for title, images in columns.items()}

    @torch.no_grad()
    def start_at_mean(self, images: Tensor) -> None:
        """Set the biases of the linear kind so that a code of zero gives the mean image: the mean is far larger than
        the components, which would be found many times slower beside it. images: (n, 3, height, width), normalised."""
        mean, (project, decode) = images.mean(0).flatten(), (self.encoder.project, self.decoder[0])
        decode.bias.copy_(mean)
        project.bias.copy_(-project.weight @ mean)

    def exported(self) -> PreTrainedModel:
        return self.encoder


def build(args: EncoderArgs, side: int) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The encoder and processor that the flags of recipes/autoencoder.py describe. side: of the data's images, in
    pixels."""
    from mmssl.models.linear_image import LinearImageConfig, LinearImageModel

    linear = args.kind == "linear"
    if linear and not args.model_name_or_path:
        from transformers import ViTImageProcessorPil

        args.refuse(("encoder", "patch_size"), "--kind linear: its encoder is one linear layer")
        side = args.image_size or side
        processor = ViTImageProcessorPil(
            size={"height": side, "width": side}, image_mean=image_encoders.MEAN, image_std=image_encoders.STD
        )
        return LinearImageModel(LinearImageConfig(image_size=side, hidden_size=args.code_dim)), processor
    encoder, processor = image_encoders.build(args, side)
    if linear and not (isinstance(encoder, LinearImageModel) and encoder.config.hidden_size == args.code_dim):
        raise BadInput(
            f"--kind linear: {args.model_name_or_path} is not a linear encoder to a code of --code_dim {args.code_dim}"
        )
    return encoder, processor


def from_args(
    args, encoder: PreTrainedModel, processor: BaseImageProcessor, views: Views, train: Pictures
) -> Autoencoder:
    """The method that the flags of recipes/autoencoder.py describe. train: the training images."""
    if args.kind != "sparse":
        args.refuse(("penalty", "sparsity_weight", "rho"), f"--kind {args.kind}")
    if args.kind != "denoising":
        args.refuse(("corruption", "noise"), f"--kind {args.kind}")
    sparse = args.penalty, args.sparsity_weight, args.rho
    size = decoding.shape(processor)
    method = Autoencoder(encoder, views, size, args.kind, args.code_dim, *sparse, args.corruption, args.noise)
    if args.kind == "linear" and not args.model_name_or_path:
        method.start_at_mean(views.whole(train.pixels[train.sample(min(MEAN_OF, len(train)))]))
    return method
