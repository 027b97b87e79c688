from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from mmssl.methods.super_resolution import SuperResolution
from mmssl.models import image_encoders
from mmssl.models.perceptual import Perceptual
from mmssl.training import steps
from tiny import Tiny, autoencoder, dcgan, simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, **options) -> SuperResolution:
    torch.manual_seed(0)
    return SuperResolution(encoder(), autoencoder.bit(), autoencoder.whole(), (16, 16), **options)


def tiny(encoder: Callable[[], PreTrainedModel] = simclr.vit, **options) -> Tiny:
    step = partial(steps.alternating, reported=1)
    return replace(simclr.around(method(encoder, **options)), step=step, optimizers=dcgan.adam, plain=dcgan.sgd)


def perceptual() -> Perceptual:
    torch.manual_seed(1)
    encoder, processor = image_encoders.from_scratch("resnet-micro", 16)
    return Perceptual(encoder, processor)


VARIANTS = {
    "vit": tiny,
    "bit": partial(tiny, autoencoder.bit, adversarial=0.1),
    "alone": lambda: simclr.around(method(adversarial=0.0)),
    "perceptual": lambda: tiny(perceptual=perceptual(), weight=0.5),
}
