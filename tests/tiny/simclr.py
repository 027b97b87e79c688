from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel, ViTImageProcessorPil

from mmssl.data.images import views
from mmssl.methods.simclr import SimCLR
from mmssl.models import image_encoders
from tiny import Tiny
from tiny.mae import Pictures


def vit() -> PreTrainedModel:
    return image_encoders._vit(image_encoders.ViTSize(32, 2, 2), 16, 4)


def resnet() -> PreTrainedModel:
    return image_encoders._resnet(image_encoders.ResNetSize((8, 16), (1, 1), stem=8))


def method(encoder: Callable[[], PreTrainedModel] = vit, temperature: float = 0.5) -> SimCLR:
    torch.manual_seed(0)
    view = views.View(scale=(0.5, 1.0), flip=0.0, hue=0.0)
    return SimCLR(encoder(), views.Views([view, view], image_encoders.MEAN, image_encoders.STD), 8, temperature)


def tiny(encoder: Callable[[], PreTrainedModel]) -> Tiny:
    sides = {"height": 16, "width": 16}
    processor = ViTImageProcessorPil(size=sides, image_mean=image_encoders.MEAN, image_std=image_encoders.STD)
    example = {"images": Pictures().pixels[:3]}
    return Tiny(method(encoder), Pictures(), batch_size=8, processor=processor, example=example)


VARIANTS = {"vit": partial(tiny, vit), "resnet": partial(tiny, resnet)}
