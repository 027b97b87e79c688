from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.data import default_collate
from transformers import PreTrainedModel, ViTImageProcessorPil

from mmssl.data.images import views
from mmssl.method import Method
from mmssl.methods.simclr import SimCLR
from mmssl.models import image_encoders
from tiny import Tiny
from tiny.mae import Pictures


def vit() -> PreTrainedModel:
    return image_encoders._vit(image_encoders.ViTSize(32, 2, 2), 16, 4)


def resnet() -> PreTrainedModel:
    return image_encoders._resnet(image_encoders.ResNetSize((8, 16), (1, 1), stem=8))


def batch(n: int = 6) -> dict[str, torch.Tensor]:
    rows = default_collate([Pictures()[i] for i in range(n)])
    del rows["index"]
    return rows


def two_views() -> views.Views:
    view = views.View(scale=(0.5, 1.0), flip=0.0, hue=0.0)
    return views.Views([view, view], image_encoders.MEAN, image_encoders.STD)


def method(encoder: Callable[[], PreTrainedModel] = vit, temperature: float = 0.5) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(encoder(), two_views(), 8, temperature)


def around(method: Method, teacher: str = "") -> Tiny:
    """What trains a method on two views of small images. teacher: what the names of its teacher's networks begin with:
    of "<teacher>_encoder", say, all moves that moves in "encoder"."""
    sides = {"height": 16, "width": 16}
    processor = ViTImageProcessorPil(size=sides, image_mean=image_encoders.MEAN, image_std=image_encoders.STD)
    learned = [name for name, value in method.named_parameters() if value.requires_grad]
    moved = tuple(f"{teacher}_{name}" for name in learned) if teacher else ()
    example = {"images": Pictures().pixels[:3]}
    return Tiny(method, Pictures(), batch_size=8, processor=processor, example=example, moved=moved)


VARIANTS = {"vit": lambda: around(method(vit)), "resnet": lambda: around(method(resnet))}
