"""iBOT: a student matches its teacher's output for an image, and for each patch that only the teacher sees.

Zhou et al. 2021, arXiv:2111.07832: DINO on the class tokens of different views, and masked image modelling on the patch
tokens of one view, whose targets are the teacher's outputs. The teacher is a moving average of the student. One head
serves both kinds of tokens, each with a centre of its own. Differs: masks are a function of an image's key; a mask is a
union of random blocks, cut to the number of patches that was drawn; the patches' centre is taken over as many patches
as are masked at most.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images.views import Views
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import ema, image_encoders, vit_tokens
from mmssl.models.self_distillation import (
    Centre,
    PrototypeHead,
    between_views,
    cross_entropy,
    entropy,
    sharpened,
    warmed_up,
)

if TYPE_CHECKING:
    from transformers import ViTModel

MASK = 1 << 16  # first stream of the masks' draws, far after those of the image's views
MASKED_IMAGES, MASK_RATIO = 0.5, (0.1, 0.5)  # of the images; of a masked image's patches. Section 4.1
BLOCKS = 8  # drawn for a mask; most masks need fewer
BLOCK_SCALE, BLOCK_RATIO = (0.08, 0.25), (0.3, 1 / 0.3)  # of the image's area; height / width, as in BEiT
STUDENT_TEMPERATURE = 0.1  # section 4.1, as are the teacher's
FIRST_TEMPERATURE, WARMED_UP = 0.04, 0.3  # of the teacher, which grows during the first 30 of 100 epochs


def masks(key: Tensor, side: int, view: int) -> Tensor:
    """(images, patches) bool: which patches are masked, in random blocks.

    key: (images,) int64. side: of the grid, in patches. view: its index; each view has its own masks.
    """
    patches = side**2
    streams = 2 + 4 * BLOCKS + patches
    drawn = draws.uniform(key[:, None], MASK + view * streams + torch.arange(streams, device=key.device))
    number = (patches * (MASK_RATIO[0] + (MASK_RATIO[1] - MASK_RATIO[0]) * drawn[:, 0])).round().clamp(min=1)
    number = torch.where(drawn[:, 1] < MASKED_IMAGES, number, 0.0)

    area, ratio, y, x = drawn[:, 2 : 2 + 4 * BLOCKS].unflatten(1, (4, BLOCKS)).unbind(1)
    area = patches * (BLOCK_SCALE[0] + (BLOCK_SCALE[1] - BLOCK_SCALE[0]) * area)
    ratio = torch.exp(math.log(BLOCK_RATIO[0]) + math.log(BLOCK_RATIO[1] / BLOCK_RATIO[0]) * ratio)
    height, width = ((size.sqrt().round().clamp(1, side)) for size in (area * ratio, area / ratio))
    top, left = (y * (side + 1 - height)).floor(), (x * (side + 1 - width)).floor()
    outside = ~vit_tokens.inside(top, left, height, width, side)
    # the first block that a patch lies in; BLOCKS if none. A block that is cut keeps a random part of its patches
    first = outside.long().cumprod(1).sum(1)
    order = (first + drawn[:, -patches:]).argsort(1).argsort(1)
    return order < number[:, None]


class IBOT(Method):
    """
    encoder:      a ViTModel, the student's.
    views:        of each image: the global views, then the local ones, as of views.multi_crop.
    global_views: number of global views; the teacher sees only these.
    prototypes:   outputs of the head. hidden_dim, bottleneck_dim: inner widths of the head.
    momentum:     of the teacher at the first step; it grows to 1.
    patch_weight: of the loss on masked patches; the loss on class tokens has weight 1.
    teacher_temperature: reached after WARMED_UP of the training; it begins at FIRST_TEMPERATURE.
    freeze_prototypes_fraction: of the training, its beginning, in which the prototypes do not change.
    """

    unit = "images"
    card = Card(
        about="iBOT: match a teacher's output for an image, and for each patch that only the teacher sees. The "
        "teacher, a moving average of the student, is exported as a `ViTModel`; the student and the heads, to continue "
        "from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="the teacher's mean distribution",
        snippets=image_encoders.SNIPPETS,
        tags=("ibot", "vit"),
    )

    def __init__(
        self,
        encoder: ViTModel,
        views: Views,
        global_views: int = 2,
        prototypes: int = 1024,
        hidden_dim: int = 512,
        bottleneck_dim: int = 128,
        momentum: float = 0.996,
        patch_weight: float = 1.0,
        teacher_temperature: float = 0.07,
        freeze_prototypes_fraction: float = 0.02,
        centre_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        vit_tokens.check(encoder, "iBOT")
        image_encoders.check_views(encoder, views)
        if not 2 <= global_views <= len(views.views):
            raise BadInput(f"global_views {global_views}: give 2 of them or more; there are {len(views.views)} views")
        width = image_encoders.width(encoder)
        self.encoder, self.head = encoder, PrototypeHead(width, hidden_dim, bottleneck_dim, prototypes)
        self.teacher_encoder, self.teacher_head = ema.teacher_of(encoder), ema.teacher_of(self.head)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.class_centre, self.patch_centre = Centre(prototypes, centre_momentum), Centre(prototypes, centre_momentum)
        self.views, self.global_views, self.side = views, global_views, vit_tokens.side(encoder)
        self.momentum, self.patch_weight, self.teacher_temperature = momentum, patch_weight, teacher_temperature
        self.freeze_prototypes_fraction = freeze_prototypes_fraction

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which views and masks are drawn."""
        shown = self.views(pixel_values, key)
        pixels, local = torch.cat(shown[: self.global_views]), shown[self.global_views :]
        masked = torch.cat([masks(key, self.side, i) for i in range(self.global_views)])

        student = vit_tokens.embed(self.encoder, pixels, masked=masked, mask_token=self.mask_token)
        student = vit_tokens.encode(self.encoder, student)
        small = (
            [vit_tokens.encode(self.encoder, vit_tokens.embed(self.encoder, torch.cat(local)))[:, 0]] if local else []
        )
        classes = self.head(torch.cat([student[:, 0], *small]))
        patches = self.head(student[:, 1:][masked])
        with torch.no_grad():
            teacher = self.teacher_encoder(pixels).last_hidden_state
            teacher_classes = self.teacher_head(teacher[:, 0])
            teacher_patches = self.teacher_head(teacher[:, 1:][masked])
        if self.training:
            self.class_centre.add(teacher_classes)
            self.patch_centre.add(teacher_patches)
        return self._loss(teacher_classes, classes, teacher_patches, patches, masked)

    def _loss(
        self,
        teacher_classes: Tensor,
        classes: Tensor,
        teacher_patches: Tensor,
        patches: Tensor,
        masked: Tensor,
    ) -> Output:
        """Equations 2 and 3. The outputs of classes: (views * batch, prototypes), the rows of a view together; of
        patches: (masked patches, prototypes). masked: (views * batch, patches) bool."""
        temperature = warmed_up(FIRST_TEMPERATURE, self.teacher_temperature, self.progress, WARMED_UP)
        with torch.autocast(classes.device.type, enabled=False):
            targets = sharpened(teacher_classes, self.class_centre, temperature)
            of_views = targets.chunk(self.global_views)
            classes = classes.split(len(teacher_classes) // self.global_views)
            class_loss = between_views(of_views, classes, STUDENT_TEMPERATURE)
            patch_targets = sharpened(teacher_patches, self.patch_centre, temperature)
            patch_loss = masked_patch_loss(patch_targets, patches, masked)
            # a student that ignores its input does best with the mean of the teacher's distributions
            mean = patch_targets.sum(0) / max(1, len(patch_targets))
            constant = entropy(targets.mean(0)) + self.patch_weight * entropy(mean) * masked.any(1).float().mean()
        return Output(
            class_loss + self.patch_weight * patch_loss,
            {"class_loss": class_loss.detach(), "patch_loss": patch_loss.detach()},
            of_views[0],  # watched for collapse: the encoder's features can differ where all targets are the same
            trivial_loss=constant,
        )

    def after_backward(self) -> None:
        if self.progress < self.freeze_prototypes_fraction:  # DINO, arXiv:2104.14294, appendix: it steadies the start
            self.head.prototypes.grad = None

    def after_step(self) -> None:
        share = ema.momentum(self.momentum, self.progress)
        ema.update(self.teacher_encoder, self.encoder, share)
        ema.update(self.teacher_head, self.head, share)
        self.class_centre.move()
        self.patch_centre.move()

    def exported(self) -> ViTModel:
        return self.teacher_encoder


def masked_patch_loss(targets: Tensor, outputs: Tensor, masked: Tensor) -> Tensor:
    """Equation 3: the mean over an image's masked patches, then over images; one without a mask counts as 0.

    targets, outputs: (masked patches, prototypes). masked: (images, patches) bool.
    """
    weight = (masked / masked.sum(1, keepdim=True).clamp(min=1))[masked] / len(masked)
    return (cross_entropy(targets, outputs, STUDENT_TEMPERATURE) * weight).sum()
