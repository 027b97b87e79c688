from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel

from mmssl.methods.vae import VAE
from tiny import Tiny, autoencoder, simclr


def method(
    encoder: Callable[[], PreTrainedModel] = autoencoder.bit, beta: float = 1.0, likelihood: str = "logistic"
) -> VAE:
    torch.manual_seed(0)
    return VAE(encoder(), autoencoder.whole(), (16, 16), 8, beta, likelihood)


def tiny(*arguments, **options) -> Tiny:
    return simclr.around(method(*arguments, **options))


VARIANTS = {
    "logistic": tiny,
    "bernoulli": partial(tiny, simclr.vit, likelihood="bernoulli"),
    "beta": partial(tiny, simclr.resnet, beta=4.0),
}
