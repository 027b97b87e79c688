"""VQ-VAE: reconstruct an image from a grid of discrete codes, each the nearest entry of a learned codebook.

van den Oord et al. 2017, arXiv:1711.00937: the decoder's gradient passes straight through the codes to the encoder
(section 3.2), a commitment loss keeps the encoder near its codes (equation 3, beta 0.25), and the codebook is an
exponential moving average of what it encodes (appendix A.1). Differs: the grid is the last layer of a standard encoder,
such as a ViT's patches; an entry that is hardly used is moved to a random encoded vector (Dhariwal et al. 2020,
arXiv:2005.00341, section 3.1); counts and sums are those of all processes and micro-batches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images.views import Views
from mmssl.distributed import gather
from mmssl.method import Card, Output
from mmssl.models import image_encoders, memory
from mmssl.models.decoder import MapDecoder
from mmssl.models.reconstructing import Reconstructing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECAY = 0.99  # appendix A.1
SMOOTHING = 1e-5  # of counts, so that no entry is divided by zero, as in the authors' code
CHOICES = 1 << 16  # first stream of the draws of vectors that entries are moved to
NO_LOT = 2.0  # larger than any draw


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(n,) int64: the nearest entry of each vector. vectors: (n, dim). codebook: (entries, dim)."""
    return (vectors @ codebook.T - codebook.square().sum(1) / 2).argmax(1)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of how often entries are used: from 1 to their number. counts: (entries,)."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()


class VQVAE(Reconstructing):
    """
    encoder:    an image encoder, see models.image_encoders.
    views:      one view of each image, in training.
    size:       (height, width) of the images.
    entries:    number of entries of the codebook; 512 in section 4.1.
    code_dim:   dimension of an entry.
    commitment: weight of the commitment loss.
    restart:    an entry that is used less often per step, by a moving average, is moved; 0: never.
    """

    unit = "images"
    card = Card(
        about="VQ-VAE: reconstruct an image from a grid of discrete codes, each the nearest entry of a learned "
        "codebook. The encoder is exported; the codebook and the decoder, to continue from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained to keep what reconstructs pixels, which need not be what tells objects apart: "
        "evaluate it on your task before you rely on it.",
        trivial="the mean image",
        tags=("vq-vae",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        size: tuple[int, int],
        entries: int = 512,
        code_dim: int = 64,
        commitment: float = 0.25,
        restart: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.commitment, self.restart = encoder, views, commitment, restart
        self.card = replace(self.card, snippets=image_encoders.snippets_of_map(encoder))
        memory.refuse_too_large(entries * code_dim, f"--entries {entries}, --code_dim {code_dim}")
        self.code = nn.Conv2d(image_encoders.width(encoder), code_dim, 1)
        cells = image_encoders.on_one(image_encoders.maps, encoder, size).shape[2:]
        self.decoder = MapDecoder(code_dim, cells, size)
        self.register_buffer("codebook", torch.randn(entries, code_dim))
        # moving averages; with 0 the first step moves entries to encoded vectors, those that are used often excepted
        self.register_buffer("count", torch.zeros(entries) if restart else torch.ones(entries))
        self.register_buffer("total", self.count[:, None] * self.codebook)
        self.register_buffer("new_count", torch.zeros(entries))  # of the present step
        self.register_buffer("new_total", torch.zeros(entries, code_dim))
        self.register_buffer("candidates", self.codebook.clone())  # random encoded vectors, to move entries to
        self.register_buffer("lots", torch.full((entries,), NO_LOT))  # those with the smallest draws of a step

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view is drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        maps = image_encoders.maps(self.encoder, pixels)
        code = self.code(maps).float()
        with torch.autocast(pixels.device.type, enabled=False):
            vectors = code.permute(0, 2, 3, 1).flatten(0, 2)
            entry = nearest(vectors.detach(), self.codebook)
            quantised = self.codebook[entry].view(len(code), *code.shape[2:], -1).permute(0, 3, 1, 2)
            commitment = (code - quantised).square().mean()
            counts = F.one_hot(entry, len(self.codebook)).sum(0).float()
            if self.training:
                self.collect(vectors.detach(), entry, key)
        predicted = self.decoder(code + (quantised - code).detach()).float()
        error = self.errors(predicted, pixels, key).mean()
        metrics = {"squared_error": error.detach(), "code_perplexity": perplexity(counts)}
        trivial = pixels.var(0, correction=0).mean()  # the error of the batch's mean image
        features = maps.detach().float().mean((2, 3))
        return Output(error + self.commitment * commitment, metrics, features, trivial)

    @torch.no_grad()
    def collect(self, vectors: Tensor, entry: Tensor, key: Tensor) -> None:
        """Count what each entry encodes. vectors: (n, code_dim) of this process. entry: (n,). key: (batch,)."""
        vectors, entry, keys = gather(vectors), gather(entry), gather(key)
        used = F.one_hot(entry, len(self.codebook)).to(vectors.dtype)
        self.new_count += used.sum(0)
        self.new_total += used.T @ vectors
        # the vectors with the smallest draws: the same, however a step is divided into parts
        cells = torch.arange(len(vectors) // len(keys), device=key.device)
        lots = torch.cat([self.lots, draws.uniform(keys[:, None], CHOICES + cells).flatten()])
        first = lots.argsort(stable=True)[: len(self.lots)]
        self.lots.copy_(lots[first])
        self.candidates.copy_(torch.cat([self.candidates, vectors])[first])

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the codebook: appendix A.1, equations 6 to 8."""
        self.count.lerp_(self.new_count, 1 - DECAY)
        self.total.lerp_(self.new_total, 1 - DECAY)
        dead = (self.count < self.restart)[:, None]
        self.total.copy_(torch.where(dead, self.candidates, self.total))
        self.count.copy_(torch.where(dead[:, 0], 1.0, self.count))
        n, entries = self.count.sum(), len(self.count)
        smoothed = (self.count + SMOOTHING) * n / (n + entries * SMOOTHING)
        self.codebook.copy_(self.total / smoothed[:, None])
        self.new_count.zero_()
        self.new_total.zero_()
        self.lots.fill_(NO_LOT)

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        pixels = self.views.whole(pixel_values)
        code = self.code(image_encoders.maps(self.encoder, pixels)).float().permute(0, 2, 3, 1)
        entry = nearest(code.flatten(0, 2), self.codebook).view(code.shape[:3])
        predicted = self.decoder(self.codebook[entry].permute(0, 3, 1, 2)).float()
        # each entry has a colour of its own
        colours = draws.uniform(entry[:, None], torch.arange(3, device=key.device).view(1, 3, 1, 1))
        columns = {"image": self.views.to_unit_range(pixels), "reconstructed": self.views.to_unit_range(predicted)}
        return columns | {"codes": F.interpolate(colours, pixels.shape[2:])}

    def exported(self) -> PreTrainedModel:
        return self.encoder
