"""Mel-frequency cepstral coefficients of a batch of recordings, on any device."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

MELS, COEFFICIENTS = 40, 13
DIM = 3 * COEFFICIENTS


def mfcc(samples: Tensor, frames: Tensor, sampling_rate: int, window: int, hop: int) -> Tensor:
    """(batch, time, DIM) fp32: coefficients of each frame, their first and their second differences over time.

    Frame t covers the `window` samples from t * hop. samples: (batch, samples), `window` or more. frames: (batch,), the
    number of frames without padding; the differences at the last of them do not see the padding.
    """
    size = 2 ** math.ceil(math.log2(window))
    pieces = samples.float().unfold(1, window, hop) * torch.hann_window(window, device=samples.device)
    power = torch.fft.rfft(pieces, n=size).abs().square()
    bands = (power @ _filters(size, sampling_rate, power.device)).clamp(min=1e-8).log()
    found = [bands @ _cosines(bands.device)]
    time = torch.arange(bands.shape[1], device=samples.device)
    last = (frames - 1).clamp(min=0)[:, None]
    for _ in range(2):
        after, before = (time + 1).minimum(last), (time - 1).clamp(min=0).expand_as(last.expand(-1, len(time)))
        ahead, behind = (
            found[-1].gather(1, place[..., None].expand(-1, -1, COEFFICIENTS)) for place in (after, before)
        )
        found.append((ahead - behind) / 2)
    return torch.cat(found, -1)


@cache
def _filters(size: int, sampling_rate: int, device: torch.device) -> Tensor:
    """(size // 2 + 1, MELS)."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(size // 2 + 1, MELS, 20.0, sampling_rate / 2, sampling_rate)
    return torch.from_numpy(bank).float().to(device)


@cache
def _cosines(device: torch.device) -> Tensor:
    """(MELS, COEFFICIENTS): the orthonormal discrete cosine transform, of type 2."""
    angle = torch.arange(COEFFICIENTS) * (torch.arange(MELS)[:, None] + 0.5) * (math.pi / MELS)
    first = torch.where(torch.arange(COEFFICIENTS) == 0, math.sqrt(0.5), 1.0)
    return (angle.cos() * math.sqrt(2 / MELS) * first).to(device)
