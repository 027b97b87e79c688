"""Spans of frames that a model of masked speech does not see (wav2vec 2.0, Baevski et al. 2020, arXiv:2006.11477)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.data import draws

STREAM = 1 << 16  # first stream of the draws


def masked_spans(key: Tensor, frames: Tensor, longest: int, share: float, length: int) -> Tensor:
    """(batch, longest) bool, True = masked: spans of `length` frames, which may overlap, from starts that are drawn
    with probability `share`; at least one. No span exceeds its recording, unless that is shorter than a span.

    key: (batch,) int64, from which the spans are drawn. frames: (batch,), without padding, at most `longest`. Differs:
    every frame is drawn on its own, instead of a fixed number without replacement.
    """
    place = torch.arange(longest, device=key.device)
    drawn = draws.uniform(key[:, None], STREAM + place)
    drawn = drawn.masked_fill(place > (frames - length).clamp(min=0)[:, None], 2.0)
    starts = (drawn < share) | (place == drawn.argmin(1, keepdim=True))
    begun = starts.long().cumsum(1)
    ended = torch.nn.functional.pad(begun, (length, 0))[:, :longest]
    return (begun > ended) & (place < frames[:, None])
