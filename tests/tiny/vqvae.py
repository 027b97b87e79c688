from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel

from mmssl.methods.vqvae import VQVAE
from tiny import Tiny, autoencoder, simclr


def method(encoder: Callable[[], PreTrainedModel] = simclr.vit, entries: int = 16, **options) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(encoder(), autoencoder.whole(), (16, 16), entries, 4, **options)


def tiny(*arguments, **options) -> Tiny:
    return simclr.around(method(*arguments, **options))


VARIANTS = {"vit": tiny, "bit": partial(tiny, autoencoder.bit), "resnet": partial(tiny, simclr.resnet)}
