from __future__ import annotations

from torch import Tensor
from torch.utils.data import default_collate

from mmssl.methods.hubert import Hubert
from tiny import Tiny
from tiny.wav2vec2 import RATE, Keyed, around, encoder


class Stored(Keyed):
    """Has what data.audio.recordings has for clustering."""

    crop, rate = Keyed.SAMPLES, RATE

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return default_collate([self[i] for i in indices])

    def set_epoch(self, epoch: int) -> None:
        """Its keys are the same in each epoch."""


def method(**options) -> Hubert:
    made = Hubert(encoder("Hubert")[0], Stored(), clusters=6, layer=1, span=4, dim=16, **options)
    made.cluster(0)  # as at the start of an epoch
    return made


def tiny(**options) -> Tiny:
    tiny = around(method(**options), encoder("Hubert")[1])
    tiny.data = Stored()
    return tiny


VARIANTS = {"mfcc_then_features": lambda: tiny(every=1), "features": lambda: tiny(acoustic=False, every=2)}
