from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.methods.jigsaw import Jigsaw
from mmssl.models import on_patches
from tiny import Tiny, cpc_image, simclr
from tiny.deepcluster import one_view


def method(encoder: Callable[[], PreTrainedModel] = cpc_image.bit, tile_size: int = 4, count: int = 6) -> Jigsaw:
    torch.manual_seed(0)
    return Jigsaw(on_patches.patchwise(encoder(), tile_size), one_view(), count, dim=8, hidden=16)


def of_bit() -> Tiny:
    """See tiny.cpc_image: short steps, where weights are compared."""
    tiny = simclr.around(method(cpc_image.bit))
    tiny.plain = lambda made: [torch.optim.SGD(made.parameters(), lr=0.01)]
    return tiny


VARIANTS = {"resnet": lambda: simclr.around(method(simclr.resnet)), "bit": of_bit}
