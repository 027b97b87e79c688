from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.cpc_image import CPCImage
from mmssl.models import image_encoders, on_patches
from tiny import Tiny, simclr
from tiny.deepcluster import one_view


def bit() -> PreTrainedModel:
    return image_encoders._bit(image_encoders.BiTSize((32, 64), (1, 1), stem=32))


def method(
    encoder: Callable[[], PreTrainedModel] = bit, kind: type = CPCImage, patch_size: int = 4, steps: int = 3
) -> CPCImage:
    torch.manual_seed(0)
    return kind(on_patches.patchwise(encoder(), patch_size), one_view(), steps, dim=8, hidden=8, blocks=2)


def of_bit() -> Tiny:
    """Standardised weights multiply the rounding of a sum over processes: short steps, where weights are compared."""
    tiny = simclr.around(method(bit))
    tiny.plain = lambda made: [torch.optim.SGD(made.parameters(), lr=0.01)]
    return tiny


VARIANTS = {"bit": of_bit, "resnet": lambda: simclr.around(method(simclr.resnet))}
