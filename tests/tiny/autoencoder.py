from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.autoencoder import Autoencoder
from mmssl.models import image_encoders
from mmssl.models.linear_image import LinearImageConfig, LinearImageModel
from tiny import Tiny, simclr


def bit() -> PreTrainedModel:
    return image_encoders._bit(image_encoders.BiTSize((16, 32), (1, 1), stem=8))


def linear(code_dim: int = 8) -> PreTrainedModel:
    return LinearImageModel(LinearImageConfig(image_size=16, hidden_size=code_dim))


def whole() -> views.Views:
    return views.Views([views.WHOLE], image_encoders.MEAN, image_encoders.STD)


def method(encoder: Callable[[], PreTrainedModel] = bit, kind: str = "undercomplete", **options) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(encoder(), whole(), (16, 16), kind, 8, **options)


def tiny(*arguments, **options) -> Tiny:
    return simclr.around(method(*arguments, **options))


VARIANTS = {
    "linear": partial(tiny, linear, "linear"),
    "undercomplete": tiny,
    "resnet": partial(tiny, simclr.resnet),
    "sparse": partial(tiny, bit, "sparse", weight=0.01),
    "l1": partial(tiny, simclr.vit, "sparse", penalty="l1", weight=0.01),
    "masked": partial(tiny, bit, "denoising"),
    "gaussian": partial(tiny, bit, "denoising", corruption="gaussian"),
}
