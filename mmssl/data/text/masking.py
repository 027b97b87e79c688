"""Which tokens a masked language model must guess, and what stands in their place. Devlin et al. 2018, section 3.1.

All chance follows from one number for each sequence: equal on any number of processes, after a resume, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.data import draws

UNITS = ("tokens", "words", "spans")
HIDDEN, REPLACED = 0.8, 0.1  # section 3.1: 80 % become [MASK], 10 % a random token, 10 % stay
LONGEST_SPAN, SPAN_ENDS = 10, 0.2  # words; the geometric distribution of SpanBERT, arXiv:1907.10529, section 3.1


def choose(draw: Tensor, maskable: Tensor, begins_word: Tensor, share: float, unit: str = "tokens") -> Tensor:
    """(batch, length) bool: the tokens to guess.

    Exactly `share` of each sequence's length (rounded, at least one), as far as it has maskable tokens. Whole words,
    and spans of them, are taken in random order until that many are reached: at most one word more.
    draw: (batch,) int64. maskable, begins_word: (batch, length) bool. unit: of UNITS.
    """
    length = maskable.shape[1]
    wanted = max(1, round(share * length))
    place = torch.arange(length, device=draw.device)
    score = _share(draw[:, None], place, 0)
    if unit != "tokens":
        word = begins_word.cumsum(1)  # from 1 on
        score = _span_scores(draw, word) if unit == "spans" else _share(draw[:, None], word, 0)
    score = score.masked_fill(~maskable, torch.inf)
    order = score.sort(dim=1, stable=True)[1]
    rank = torch.empty_like(order).scatter_(1, order, place.expand_as(order))
    if unit != "tokens":  # a word goes with its first token
        first = torch.full((len(draw), length + 1), length, device=draw.device)
        rank = first.scatter_reduce(1, word, rank, "amin").gather(1, word)
    return (rank < wanted) & maskable


def corrupt(draw: Tensor, input_ids: Tensor, chosen: Tensor, mask_token: int, vocab_size: int) -> Tensor:
    """input_ids as the model sees them: of the chosen ones, 80 % are mask_token, 10 % any token, 10 % as they were."""
    place = torch.arange(input_ids.shape[1], device=draw.device)
    kind = _share(draw[:, None], place, 1)
    random = (_share(draw[:, None], place, 2) * vocab_size).long()
    seen = torch.where(chosen & (kind < HIDDEN), mask_token, input_ids)
    return torch.where(chosen & (kind >= HIDDEN) & (kind < HIDDEN + REPLACED), random, seen)


def _span_scores(draw: Tensor, word: Tensor) -> Tensor:
    """A span begins at every word, with a length of its own; a word has the lowest score of the spans that cover it, so
    that taking words by score takes span after span."""
    score = torch.full(word.shape, torch.inf, dtype=torch.double, device=draw.device)
    for back in range(LONGEST_SPAN):
        start = word - back
        # the length is geometric: it exceeds `back` with probability (1 - SPAN_ENDS) ** back
        covers = (_share(draw[:, None], start, 3) < (1 - SPAN_ENDS) ** back) & (start > 0)
        score = torch.where(covers, torch.minimum(score, _share(draw[:, None], start, 0)), score)
    return score


def _share(draw: Tensor, x: Tensor, purpose: int) -> Tensor:
    """Spread evenly over [0, 1): one number for each sequence, place and purpose."""
    return draws.share(draw + 0x9E3779B1 * x, purpose, 0)
