from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images import views
from mmssl.methods.relative_patch import RelativePatch
from mmssl.models import image_encoders, on_patches
from tiny import Tiny, simclr
from tiny.cpc_image import bit


def enlarged() -> views.Views:
    """At 32 pixels, which have room for patches of 7."""
    view = views.View(size=32, scale=(0.5, 1.0), flip=0.0, jitter=0.0, grey=0.0)
    return views.Views([view], image_encoders.MEAN, image_encoders.STD)


def method(
    encoder: Callable[[], PreTrainedModel] = bit, kind: type = RelativePatch, patch_size: int = 7, **settings
) -> RelativePatch:
    torch.manual_seed(0)
    return kind(on_patches.patchwise(encoder(), patch_size), enlarged(), **settings)


def of_bit() -> Tiny:
    """Standardised weights multiply the rounding of a sum over processes: short steps, where weights are compared."""
    tiny = simclr.around(method(bit))
    tiny.plain = lambda made: [torch.optim.SGD(made.parameters(), lr=0.003)]
    return tiny


VARIANTS = {"resnet": lambda: simclr.around(method(simclr.resnet)), "bit": of_bit}
