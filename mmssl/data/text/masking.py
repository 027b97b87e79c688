"""Which tokens a masked language model predicts, and what replaces them in its input. Devlin et al. 2018, section 3.1.

All randomness follows from one number per sequence: equal on any number of processes, after a resume, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.data import draws

UNITS = ("tokens", "words", "spans")
MASKED, REPLACED = 0.8, 0.1  # section 3.1: 80 % become [MASK], 10 % a random token, 10 % stay
LONGEST_SPAN, SPAN_ENDS = 10, 0.2  # words; the geometric distribution of SpanBERT, arXiv:1907.10529, section 3.1


def choose(
    draw: Tensor,
    maskable: Tensor,
    begins_word: Tensor,
    share: float,
    unit: str = "tokens",
    lengths: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """(batch, length) bool: the tokens to predict.

    Exactly the fraction `share` of each sequence's length (rounded, at least one), or all its maskable tokens if they
    are fewer. Whole words and spans of words are taken in random order until that number is reached; the last word may
    exceed it. draw: (batch,) int64. maskable, begins_word: (batch, length) bool. unit: one of UNITS. lengths: (batch,)
    where sequences are padded. weight: (batch, length), above 0: a token or word of twice the weight comes first twice
    as often; of a word, the largest weight of its tokens counts. Not for spans.
    """
    length = maskable.shape[1]
    full = torch.full_like(draw, length) if lengths is None else lengths
    wanted = (share * full.double()).round().clamp(min=1)[:, None]
    place = torch.arange(length, device=draw.device)
    score = _share(draw[:, None], place, 0)
    if unit != "tokens":
        word = begins_word.cumsum(1)  # (batch, length) the number of each token's word, from 1
        score = _span_scores(draw, word) if unit == "spans" else _share(draw[:, None], word, 0)
    if weight is not None:
        if unit != "tokens":
            weight = (
                torch.zeros(len(draw), length + 1, dtype=weight.dtype, device=draw.device)
                .scatter_reduce(1, word, weight, "amax")
                .gather(1, word)
            )
        # the first of several exponential clocks is each one in proportion to its rate
        score = -torch.log1p(-score) / weight
    score = score.masked_fill(~maskable, torch.inf)
    order = score.sort(dim=1, stable=True)[1]
    rank = torch.empty_like(order).scatter_(1, order, place.expand_as(order))
    if unit != "tokens":  # a word goes with its first token
        first = torch.full((len(draw), length + 1), length, device=draw.device)
        rank = first.scatter_reduce(1, word, rank, "amin").gather(1, word)
    return (rank < wanted) & maskable


def most(length: int, share: float, unit: str = "tokens") -> int | None:
    """The largest number of tokens that `choose` takes of a full sequence; None: a last word may exceed any."""
    return min(length, max(1, round(share * length))) if unit == "tokens" else None


def places(chosen: Tensor, most: int | None = None) -> Tensor:
    """(n,) int64: the places of chosen tokens in the flattened batch, in their order. chosen: (batch, length) bool.

    most: in one sequence. Then n is batch * most, so that nothing waits for the device to count them: where a sequence
    has fewer, places of others fill up.
    """
    if most is None:
        return chosen.flatten().nonzero()[:, 0]
    inside = chosen.byte().sort(dim=1, descending=True, stable=True)[1][:, :most]
    return (inside + chosen.shape[1] * torch.arange(len(chosen), device=chosen.device)[:, None]).flatten()


def corrupt(draw: Tensor, input_ids: Tensor, chosen: Tensor, mask_token: int, vocab_size: int) -> Tensor:
    """(batch, length) int64: input_ids with 80 % of the chosen ones replaced by mask_token, 10 % by a random token and
    10 % unchanged. draw: (batch,) int64. input_ids: (batch, length) int64. chosen: (batch, length) bool."""
    place = torch.arange(input_ids.shape[1], device=draw.device)
    kind = _share(draw[:, None], place, 1)
    random = (_share(draw[:, None], place, 2) * vocab_size).long()
    seen = torch.where(chosen & (kind < MASKED), mask_token, input_ids)
    return torch.where(chosen & (kind >= MASKED) & (kind < MASKED + REPLACED), random, seen)


def _span_scores(draw: Tensor, word: Tensor) -> Tensor:
    """(batch, length) float64. A span of random length and random score starts at every word; a word gets the lowest
    score of the spans that cover it, so that taking words by score takes one span after another. draw: (batch,) int64.
    word: (batch, length), the number of each token's word, from 1."""
    score = torch.full(word.shape, torch.inf, dtype=torch.double, device=draw.device)
    for back in range(LONGEST_SPAN):
        start = word - back
        # the length is geometric: it exceeds `back` with probability (1 - SPAN_ENDS) ** back
        covers = (_share(draw[:, None], start, 3) < (1 - SPAN_ENDS) ** back) & (start > 0)
        score = torch.where(covers, torch.minimum(score, _share(draw[:, None], start, 0)), score)
    return score


def _share(draw: Tensor, x: Tensor, purpose: int) -> Tensor:
    """Uniform in [0, 1), float64: one number for each sequence, x and purpose. draw, x: integers that broadcast."""
    return draws.share(draw + 0x9E3779B1 * x, purpose, 0)
