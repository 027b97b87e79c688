"""DINO: from each view of an image, predict how a teacher that sees a large view assigns the image to prototypes.

Caron et al. 2021, arXiv:2104.14294. Student and teacher have one architecture; the teacher is a moving average of the
student, and sees only the large views. Its outputs are centred and sharpened, which prevents collapse without negatives
(section 5.3). Differs: centre and batch norms take their statistics over all processes, and the centre moves once per
optimizer step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.data.images.views import Views
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import ema, image_encoders
from mmssl.models.self_distillation import Centre, PrototypeHead, between_views, entropy, sharpened, warmed_up

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STUDENT_TEMPERATURE = 0.1  # section 3.2, as are the teacher's
FIRST_TEMPERATURE, LAST_TEMPERATURE, WARMED_UP = 0.04, 0.07, 0.3  # of the teacher; 30 of 100 epochs


class DINO(Method):
    """
    encoder:        an image encoder, see models.image_encoders: the student's.
    views:          of each image, the large views first, as of views.multi_crop.
    large_views:    number of large views; the teacher sees only these.
    prototypes:     number of outputs of the head. hidden_dim, bottleneck_dim: widths of its hidden layers.
    momentum:       of the teacher's moving average at the first step; it grows to 1. 0.996 for long runs.
    freeze_prototypes_fraction: of the training, its beginning, in which the prototypes are not trained.
    teacher_temperature: of the teacher, after its warm-up.
    norm:           norm of the head, see models.heads; "none" in the paper for ViTs and large batches. Without batch
                    statistics small networks collapse easily.
    """

    unit = "images"
    card = Card(
        about="DINO: from each view of an image, predict how a teacher that sees a large view assigns the image to "
        "prototypes. The teacher, a moving average of the student, is exported; the student and the heads, to continue "
        "from, are in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="the teacher's mean output for every image",
        snippets=image_encoders.SNIPPETS,
        tags=("dino",),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        large_views: int = 2,
        prototypes: int = 1024,
        hidden_dim: int = 512,
        bottleneck_dim: int = 128,
        momentum: float = 0.99,
        freeze_prototypes_fraction: float = 0.02,
        teacher_temperature: float = LAST_TEMPERATURE,
        centre_momentum: float = 0.9,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if not 1 <= large_views <= len(views.views) or len(views.views) < 2:
            raise BadInput(f"large_views {large_views} of {len(views.views)} views: DINO compares at least 2 views")
        image_encoders.check_views(encoder, views)
        self.encoder, self.views, self.large_views = encoder, views, large_views
        self.momentum, self.teacher_temperature = momentum, teacher_temperature
        self.freeze_prototypes_fraction = freeze_prototypes_fraction
        self.head = PrototypeHead(image_encoders.width(encoder), hidden_dim, bottleneck_dim, prototypes, norm)
        self.teacher_encoder, self.teacher_head = ema.teacher_of(encoder), ema.teacher_of(self.head)
        self.centre = Centre(prototypes, centre_momentum)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's views are drawn."""
        views = self.views(pixel_values, key)
        large = views[: self.large_views]
        student = self.head(torch.cat(image_encoders.features_of_views(self.encoder, views)))
        with torch.no_grad():
            teacher = self.teacher_head(torch.cat(image_encoders.features_of_views(self.teacher_encoder, large)))
        return {
            name: outputs.float().unflatten(0, (-1, len(key))).transpose(0, 1)
            for name, outputs in {"student": student, "teacher": teacher}.items()
        }

    def loss(self, student: Tensor, teacher: Tensor) -> Output:
        """Equation 3. student: (batch, views, prototypes). teacher: (batch, large views, prototypes)."""
        temperature = warmed_up(FIRST_TEMPERATURE, self.teacher_temperature, self.progress, WARMED_UP)
        with torch.autocast(student.device.type, enabled=False):
            targets = sharpened(teacher, self.centre, temperature)
            loss = between_views(targets.unbind(1), student.unbind(1), STUDENT_TEMPERATURE)
            constant = entropy(targets.mean((0, 1)))
        if self.training:
            self.centre.add(teacher.detach().flatten(0, 1))
        # targets are watched: they are equal for all images when the teacher has collapsed, be it to one prototype or
        # to a uniform distribution
        return Output(loss, {"teacher_entropy": entropy(targets).mean()}, targets[:, 0], trivial_loss=constant)

    def after_backward(self) -> None:
        if self.progress < self.freeze_prototypes_fraction:  # appendix C: the prototypes wait for the first epoch
            self.head.prototypes.grad = None

    def after_step(self) -> None:
        momentum = ema.momentum(self.momentum, self.progress)
        ema.update(self.teacher_encoder, self.encoder, momentum)
        ema.update(self.teacher_head, self.head, momentum)
        self.centre.move()

    def exported(self) -> PreTrainedModel:
        return self.teacher_encoder
