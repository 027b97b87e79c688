from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from mmssl.methods.bigan import BiGAN
from mmssl.training import steps
from tiny import Tiny, autoencoder, dcgan, simclr


def method(encoder: Callable[[], PreTrainedModel] = autoencoder.bit, **options) -> BiGAN:
    torch.manual_seed(0)
    return BiGAN(encoder(), autoencoder.bit(), autoencoder.whole(), (16, 16), 8, 16, 32, **options)


def tiny(encoder: Callable[[], PreTrainedModel] = autoencoder.bit, **options) -> Tiny:
    return replace(
        simclr.around(method(encoder, **options)), step=steps.alternating, optimizers=dcgan.adam, plain=dcgan.sgd
    )


VARIANTS = {"bit": partial(tiny, code_error=1.0, image_error=1.0), "vit": partial(tiny, simclr.vit)}
