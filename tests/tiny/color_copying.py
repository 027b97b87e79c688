from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.color_copying import COLOURS, ColorCopying
from mmssl.models import image_encoders
from tiny import Tiny, cpc_image, simclr
from tiny.video_lstm import Clips


def centres() -> torch.Tensor:
    return 60 * torch.randn(COLOURS, 2, generator=torch.Generator().manual_seed(0))


def method(encoder: Callable[[], PreTrainedModel] = cpc_image.bit) -> ColorCopying:
    torch.manual_seed(0)
    made = views.Views([views.WHOLE], image_encoders.MEAN, image_encoders.STD)
    return ColorCopying(encoder(), made, centres(), 2, 16)


def tiny(encoder: Callable[[], PreTrainedModel]) -> Tiny:
    made = simclr.around(method(encoder))
    made.data = Clips()
    made.plain = lambda one: [torch.optim.SGD(one.parameters(), lr=0.01)]
    return made


VARIANTS = {"bit": lambda: tiny(cpc_image.bit), "resnet": lambda: tiny(simclr.resnet), "vit": lambda: tiny(simclr.vit)}
