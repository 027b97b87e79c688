from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmssl.data import draws
from mmssl.methods.wav2vec2 import Wav2Vec2
from mmssl.models import speech_encoders
from tiny import Tiny, cpc

RATE = 1000  # Hz


class Keyed(cpc.Tones):
    """Tones of different lengths, each with a key."""

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return super().__getitem__(i) | {"key": draws.draw(torch.tensor(i), 0, 0)}


def encoder(kind: str = "Wav2Vec2") -> tuple:
    """(model, feature extractor): frames of 8 samples, every 5."""
    torch.manual_seed(0)
    model, extractor = speech_encoders.from_scratch(kind, RATE, 32, 2, 16, [8], [5])
    return model, extractor


def around(method, extractor) -> Tiny:
    data = Keyed()
    example = {"raw_speech": data.waves[:2], "sampling_rate": RATE}
    return Tiny(method, data, batch_size=8, processor=extractor, example=example)


def tiny(**options) -> Tiny:
    model, extractor = encoder()
    return around(Wav2Vec2(model, entries=8, dim=16, span=4, **options), extractor)


VARIANTS = {"two_codebooks": tiny, "one_codebook": partial(tiny, groups=1, share=0.2)}
