"""I-JEPA: predict the features of blocks of an image from the rest of the image.

Assran et al. 2023, arXiv:2301.08243. The context encoder, a ViT, sees the patches of one large block without those of
four target blocks. A narrow predictor gets its output and, for each target block, mask tokens with the block's
positions; it should give the features that the target encoder, a moving average of the context encoder, has there for
the whole image. The only augmentation is a crop, perhaps flipped.

Differs: masks are drawn for each image from its key, not for a batch, so that runs repeat on any number of processes;
shorter sequences are padded to a fixed length, where the authors cut all to the shortest of the batch. The stock ViT
has a class token, which the paper's does not: it is one more context token, and the predictor reads it. The momentum
grows by a cosine, not linearly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images.views import Views
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import ema, image_encoders, memory, vit_tokens

if TYPE_CHECKING:
    from transformers import ViTModel

MASK = 1 << 16  # first stream of the masks' draws, far after those of the image's view
TARGETS = 4  # blocks, section 3
TARGET_SCALE, TARGET_RATIO = (0.15, 0.2), (0.75, 1.5)  # of the image's area; height / width. Section 3
CONTEXT_SCALE = (0.85, 1.0)  # of the image's area; the block is square. Section 3


def target_blocks(key: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(places, real): the patches of the target blocks, all (images, TARGETS, length); `real` is False at padding.

    The blocks of an image have one size. key: (images,) int64. side: of the grid, in patches.
    """
    drawn = draws.uniform(key[:, None], MASK + torch.arange(2 + 2 * TARGETS, device=key.device))
    low, high = (scale * side**2 for scale in TARGET_SCALE)
    area = low + (high - low) * drawn[:, 0]
    ratio = torch.exp(math.log(TARGET_RATIO[0]) + math.log(TARGET_RATIO[1] / TARGET_RATIO[0]) * drawn[:, 1])
    height = (area * ratio).sqrt().round().clamp(1, side)
    width = torch.minimum((area / height).round(), (high / height).floor()).clamp(1, side)
    height, width = height[:, None], width[:, None]
    top, left = (
        (drawn[:, 2:].unflatten(1, (2, TARGETS)) * (side + 1 - torch.stack([height, width], 1))).floor().unbind(1)
    )
    inside = vit_tokens.inside(top, left, height, width, side)
    places = inside.long().argsort(dim=-1, descending=True, stable=True)[..., : max(1, int(high))]
    return places, inside.gather(-1, places)


def context_block(key: Tensor, side: int, without: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(places, real): patches of the context block that are not in `without`, both (images, length); `real` is False at
    padding. If there are more than `length`, a random part of them.

    key: (images,) int64. side: of the grid, in patches. without: (images, patches) bool.
    """
    streams = MASK + 2 + 2 * TARGETS + torch.arange(3 + side**2, device=key.device)
    drawn = draws.uniform(key[:, None], streams)
    scale = CONTEXT_SCALE[0] + (CONTEXT_SCALE[1] - CONTEXT_SCALE[0]) * drawn[:, :1]
    extent = (side * scale.sqrt()).round().clamp(1, side)
    top, left = ((drawn[:, 1:3] * (side + 1 - extent)).floor()).split(1, 1)
    usable = vit_tokens.inside(top, left, extent, extent, side)[:, 0] & ~without
    places = (drawn[:, 3:] + ~usable).argsort(1)[:, :length]
    return places, usable.gather(1, places)


def prediction_loss(predicted: Tensor, target: Tensor, real: Tensor) -> Tensor:
    """Smooth L1 (as in the authors' code; section 3 has L2): the mean over each image's real patches, then over images.

    predicted, target: (images, patches, width). real: (images, patches) bool.
    """
    distance = F.smooth_l1_loss(predicted, target, reduction="none").mean(-1)
    return ((distance * real).sum(1) / real.sum(1)).mean()


class Predictor(nn.Module):
    """A narrow ViT over context tokens and mask tokens.

    width: of the encoder's tokens. narrow: inside. side: of the grid, in patches.
    """

    def __init__(self, width: int, narrow: int, layers: int, heads: int, side: int) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        config = ViTConfig(
            hidden_size=narrow, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * narrow,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6,
        )  # fmt: skip
        vit = ViTModel(config, add_pooling_layer=False)
        self.layers, self.layernorm = vit.layers, vit.layernorm  # without the embedding of pixels
        self.enter, self.leave = nn.Linear(width, narrow), nn.Linear(narrow, width)
        self.mask_token = nn.Parameter(torch.empty(narrow))
        vit_tokens.xavier(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", vit_tokens.sine_cosine_positions(side, narrow)[0], persistent=False)

    def forward(self, context: Tensor, places: Tensor, seen: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        """(images, TARGETS, length, width): features predicted at the targets, for each block by itself.

        context: (images, 1 + length, width), the class token first. places: (images, length), its patches. seen:
        (images, 1 + length) bool. targets, real: (images, TARGETS, length), see `target_blocks`.
        """
        blocks = targets.shape[1]
        context = self.enter(context) + self.positions[F.pad(places + 1, (1, 0))]  # position 0 is the class token's
        masks = (self.mask_token + self.positions[targets + 1]).flatten(0, 1).to(context.dtype)
        tokens = torch.cat([context.repeat_interleave(blocks, 0), masks], 1)
        seen = torch.cat([seen.repeat_interleave(blocks, 0), real.flatten(0, 1)], 1)
        predicted = vit_tokens.encode(self, tokens, seen)[:, context.shape[1] :]
        return self.leave(predicted).unflatten(0, (-1, blocks))


class IJEPA(Method):
    """
    encoder:       a ViTModel, the context encoder.
    views:         one view of each image, in training.
    width, layers, heads: of the predictor.
    momentum:      of the target encoder at the first step; it grows to 1.
    context_ratio: largest fraction of the patches that the context encoder sees.
    """

    unit = "images"
    card = Card(
        about="I-JEPA: predict the features of blocks of an image from the rest of the image. The target encoder, a "
        "moving average of the encoder that is trained, is exported as a `ViTModel`; the context encoder and the "
        "predictor, to continue from, are in `pretraining/`. Use the mean of the patch tokens, "
        "`last_hidden_state[:, 1:].mean(1)`: `pooler_output` is the class token, which training uses only as context.",
        task="image-feature-extraction",
        limits="The model was trained without labels: evaluate it on your task before you rely on it.",
        trivial="the mean target of the batch",
        snippets=image_encoders.SNIPPETS_OF_PATCHES,
        tags=("ijepa", "vit"),
    )

    def __init__(
        self,
        encoder: ViTModel,
        views: Views,
        width: int = 64,
        layers: int = 3,
        heads: int = 2,
        momentum: float = 0.996,
        context_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        vit_tokens.check(encoder, "I-JEPA")
        if width % (4 * heads):
            raise BadInput(
                f"--predictor_width {width}, --predictor_heads {heads}: the width must be a multiple of {4 * heads}"
            )
        self.encoder, self.target_encoder = encoder, ema.teacher_of(encoder)
        self.views, self.momentum, self.side = views, momentum, vit_tokens.side(encoder)
        self.length = max(1, round(context_ratio * self.side**2))
        given = image_encoders.width(encoder), width, layers, heads, self.side
        sizes = f"--predictor_width {width}, --predictor_layers {layers}"
        self.predictor = memory.build(lambda: Predictor(*given), sizes)

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which crop and masks are drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        targets, real = target_blocks(key, self.side)
        covered = torch.zeros(len(key), self.side**2, dtype=torch.long, device=key.device)
        covered = covered.scatter_add(1, targets.flatten(1), real.flatten(1).long())  # by how many blocks
        places, seen = context_block(key, self.side, covered > 0, self.length)

        tokens = vit_tokens.embed(self.encoder, pixels)
        tokens = torch.cat([tokens[:, :1], vit_tokens.at(tokens[:, 1:], places)], 1)
        seen = F.pad(seen, (1, 0), value=True)
        context = vit_tokens.encode(self.encoder, tokens, seen)
        predicted = self.predictor(context, places, seen, targets, real)
        encoded = self.encoded(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            goal = F.layer_norm(encoded, encoded.shape[-1:])
            predicted, targets, real = predicted.float().flatten(1, 2), targets.flatten(1), real.flatten(1)
            loss = prediction_loss(predicted, vit_tokens.at(goal, targets), real)
            mean = vit_tokens.at(goal.mean(0, keepdim=True).expand_as(goal), targets)
            trivial = prediction_loss(mean, vit_tokens.at(goal, targets), real)
        return Output(loss, features=encoded.detach().mean(1), trivial_loss=trivial.detach())

    @torch.no_grad()
    def encoded(self, pixels: Tensor) -> Tensor:
        """(batch, patches, width) float32: the target encoder's features of whole images, (batch, 3, height, width)."""
        return self.target_encoder(pixels).last_hidden_state[:, 1:].float()

    def after_step(self) -> None:
        ema.update(self.target_encoder, self.encoder, ema.momentum(self.momentum, self.progress))

    def exported(self) -> ViTModel:
        return self.target_encoder
