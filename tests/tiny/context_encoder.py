from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from mmssl.methods.context_encoder import ContextEncoder
from mmssl.training import steps
from tiny import Tiny, autoencoder, dcgan, simclr


def method(encoder: Callable[[], PreTrainedModel] = autoencoder.bit, **options) -> ContextEncoder:
    torch.manual_seed(0)
    return ContextEncoder(encoder(), autoencoder.bit(), autoencoder.whole(), (16, 16), code_dim=8, **options)


def tiny(encoder: Callable[[], PreTrainedModel] = autoencoder.bit, **options) -> Tiny:
    step = partial(steps.alternating, reported=1)
    return replace(simclr.around(method(encoder, **options)), step=step, optimizers=dcgan.adam, plain=dcgan.sgd)


VARIANTS = {
    "centre": tiny,
    "random": partial(tiny, simclr.vit, region="random", adversarial=0.1),
    "resnet": partial(tiny, simclr.resnet),
}
