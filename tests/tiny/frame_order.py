from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.frame_order import FrameOrder
from mmssl.models import image_encoders
from tiny import Tiny, cpc_image, simclr
from tiny.video_lstm import Clips


def method(
    encoder: Callable[[], PreTrainedModel] = cpc_image.bit, kind: str = "shuffle", noise: float = 0.1
) -> FrameOrder:
    torch.manual_seed(0)
    view = views.View(scale=(0.9, 1.0), flip=0.0, saturation=0.0, hue=0.0, grey=0.0)
    made = views.Views([view], image_encoders.MEAN, image_encoders.STD)
    return FrameOrder(encoder(), made, kind, noise, hidden=16)


def tiny(encoder: Callable[[], PreTrainedModel], kind: str = "shuffle") -> Tiny:
    made = simclr.around(method(encoder, kind))
    made.data = Clips()
    made.plain = lambda one: [torch.optim.SGD(one.parameters(), lr=0.01)]
    return made


VARIANTS = {
    "bit": lambda: tiny(cpc_image.bit),
    "resnet": lambda: tiny(simclr.resnet),
    "arrow": lambda: tiny(simclr.vit, "arrow"),
}
