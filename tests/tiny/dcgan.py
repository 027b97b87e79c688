from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from mmssl.methods.dcgan import DCGAN
from mmssl.training import steps
from tiny import Tiny, autoencoder, simclr


def method(encoder: Callable[[], PreTrainedModel] = autoencoder.bit) -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(encoder(), autoencoder.whole(), (16, 16), 8, 16)


def adam(method: DCGAN) -> list[Optimizer]:
    return [torch.optim.AdamW(player.parameters(), lr=3e-3) for player in method.players()]


def sgd(method: DCGAN) -> list[Optimizer]:
    # a small rate: in a game of two, rounding grows from step to step
    return [torch.optim.SGD(player.parameters(), lr=0.01) for player in method.players()]


def tiny(encoder: Callable[[], PreTrainedModel] = autoencoder.bit) -> Tiny:
    return replace(simclr.around(method(encoder)), step=steps.alternating, optimizers=adam, plain=sgd)


VARIANTS = {"bit": tiny, "resnet": partial(tiny, simclr.resnet)}
