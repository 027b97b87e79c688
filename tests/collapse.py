"""A method that must collapse is trained until the monitor says so."""

from __future__ import annotations

import torch
from tiny import simclr
from torch import Tensor
from transformers import PreTrainedModel

from mmssl.method import Method
from mmssl.models import image_encoders
from mmssl.training.monitor import CollapseWatch

STEPS = 200


def encoder() -> PreTrainedModel:
    return image_encoders._vit(image_encoders.ViTSize(16, 1, 2), 16, 8)


def said(method: Method, learning_rate: float = 5e-3, batch: dict[str, Tensor] | None = None) -> str | None:
    """What the monitor says within 200 steps on 24 images, or on `batch`, each time of other views; None where it says
    nothing."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=learning_rate)
    watch, batch = CollapseWatch(), batch or simclr.batch(24)
    method.train()
    for step in range(STEPS):
        method.progress = step / STEPS
        output = method(pixel_values=batch["pixel_values"], key=batch["key"] + step)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
        if step % 10 == 0 and (sentence := watch.look(output.features, method.progress)[1]):
            return sentence
    return None
