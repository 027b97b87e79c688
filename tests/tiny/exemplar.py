from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from mmssl.data.images.numbered import Numbered
from mmssl.methods.exemplar import Exemplar
from tiny import Tiny, simclr
from tiny.deepcluster import Stored, one_view


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, kind: type = Exemplar, classes: int = 24) -> Exemplar:
    torch.manual_seed(0)
    return kind(encoder(), one_view(), classes, hidden_dim=16)


def numbered(made: Exemplar) -> Tiny:
    tiny = simclr.around(made)
    tiny.data = Numbered(Stored())
    return tiny


VARIANTS = {"vit": lambda: numbered(method(simclr.vit)), "resnet": lambda: numbered(method(simclr.resnet))}
