"""The random choices of skip-gram training (Mikolov et al. 2013, arXiv:1310.4546): which words stay, how far each looks
around, and which noise words it is told from. Every form of the method trains on the same draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.errors import BadInput
from mmssl.kernels import SENTENCE_END

SPARE = 5  # the kernel reads a full register of noise words


@dataclass(frozen=True)
class Draws:
    """
    words:     (n,) int32, the text after subsampling, -1 at the end of a sentence.
    reach:     (n,) int32, how many words to either side of each word are its context.
    negatives: (n * negative + SPARE,) int32, the noise words of each word in turn.
    """

    words: np.ndarray
    reach: np.ndarray
    negatives: np.ndarray


def draw(
    ids: np.ndarray, keep: np.ndarray, window: int, noise: np.ndarray, negative: int, rng: np.random.Generator
) -> Draws:
    """ids: (n,) int32. keep: see `keep_probability`. noise: a shuffled pool, read on from a random place.

    Raises BadInput: an id beyond the vocabulary, no noise to draw from.
    """
    if len(ids) and (ids.max() >= len(keep) - 1 or ids.min() < SENTENCE_END):
        raise BadInput(f"word ids from {ids.min()} to {ids.max()} for a vocabulary of {len(keep) - 1:,} words")
    if not len(noise):
        raise BadInput("the pool of noise words is empty")
    words = ids[rng.random(len(ids), dtype=np.float32) < keep[ids]]
    reach = rng.integers(1, window, len(words), dtype=np.int32, endpoint=True)
    start, needed = int(rng.integers(len(noise))), len(words) * negative + SPARE
    negatives = noise[start : start + needed]
    if len(negatives) < needed:
        negatives = np.take(noise, np.arange(start, start + needed), mode="wrap")
    return Draws(words, reach, negatives)


def keep_probability(counts: np.ndarray, sample: float) -> np.ndarray:
    """(words + 1,) float32: how often to keep a word, min(1, sqrt(t / f) + t / f) where f is its share of the text and
    t is `sample` (the form of word2vec.c; section 2.3 has the square root alone). The last entry, which -1 selects, is
    1."""
    keep = np.ones(len(counts) + 1, np.float32)
    if sample > 0:
        ratio = sample * counts.sum() / np.maximum(counts, 1)
        keep[:-1] = np.minimum(1, np.sqrt(ratio) + ratio)
    return keep


def noise_pool(counts: np.ndarray, rng: np.random.Generator, size: int = 2**22, power: float = 0.75) -> np.ndarray:
    """(size,) int32: words drawn from counts ** 3/4 (section 2.2), in random order.

    Drawn at even steps of the cumulative distribution, from a random start: each word's share is right to one in
    `size`. Raises BadInput where no word has been counted.
    """
    cumulative = np.cumsum(counts.astype(np.float64) ** power)
    if not len(cumulative) or not cumulative[-1] > 0:
        raise BadInput(f"no noise words: {len(counts)} words, and none occurs")
    steps = (np.arange(size) + rng.random()) / size * cumulative[-1]
    steps = np.minimum(steps, np.nextafter(cumulative[-1], 0))  # rounding must not lead beyond the last word
    return rng.permutation(np.searchsorted(cumulative, steps, side="right").astype(np.int32))


class Pieces(Dataset):
    """A flat array of ids as a map-style dataset of pieces of `PIECE` words; an item is a view of the array, copied
    into the batch. A piece ends like a sentence: windows do not run from one into the next.

    A batch: {"ids": (pieces, PIECE + 1) int32}.
    """

    PIECE = 1000  # words

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return -(-len(self.ids) // self.PIECE)

    def __getitems__(self, pieces: list[int]) -> dict[str, Tensor]:
        batch = np.full((len(pieces), self.PIECE + 1), SENTENCE_END, np.int32)
        for row, piece in zip(batch, pieces, strict=True):
            words = self.ids[piece * self.PIECE : (piece + 1) * self.PIECE]
            row[: len(words)] = words
        return {"ids": torch.from_numpy(batch), "index": torch.tensor(pieces)}


def windows(draws: Draws, window: int, negative: int) -> tuple[Tensor, Tensor]:
    """contexts: (windows, 2 * window) int64, -1 where there is no word. targets: (windows, 1 + negative), centre
    first."""
    words, reach = torch.from_numpy(draws.words).long(), torch.from_numpy(draws.reach).long()
    sentence = (words < 0).cumsum(0)
    centre = (words >= 0).nonzero().squeeze(1)
    offset = torch.tensor([o for o in range(-window, window + 1) if o])
    at = centre[:, None] + offset
    inside = (at >= 0) & (at < len(words))
    at = at.clamp(0, max(0, len(words) - 1))
    inside &= (sentence[at] == sentence[centre][:, None]) & (words[at] >= 0) & (offset.abs() <= reach[centre][:, None])
    noise = torch.from_numpy(draws.negatives[: len(words) * negative]).long().view(len(words), negative)
    return torch.where(inside, words[at], -1), torch.cat([words[centre][:, None], noise[centre]], 1)
