from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.tracking import Tracking
from mmssl.models import image_encoders
from tiny import Tiny, cpc_image, simclr
from tiny.video_lstm import Clips


def method(encoder: Callable[[], PreTrainedModel] = cpc_image.bit, patch_size: int = 8) -> Tracking:
    torch.manual_seed(0)
    view = views.View(size=16, scale=(0.6, 1.0), flip=0.0, jitter=0.0, grey=0.0)
    made = views.Views([view], image_encoders.MEAN, image_encoders.STD)
    return Tracking(encoder(), made, patch_size, reach=3, dim=8, hard_from=0.5)


def tiny(encoder: Callable[[], PreTrainedModel]) -> Tiny:
    made = simclr.around(method(encoder))
    made.data = Clips()
    made.plain = lambda one: [torch.optim.SGD(one.parameters(), lr=0.01)]
    return made


VARIANTS = {"bit": lambda: tiny(cpc_image.bit), "resnet": lambda: tiny(simclr.resnet)}
