"""The random choices of skip-gram training (Mikolov et al. 2013, arXiv:1310.4546): which words are kept, how wide the
window of each is, and its noise words. All implementations of the method train on the same draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.errors import BadInput
from mmssl.kernels import SENTENCE_END

SPARE = 5  # noise words after the last one: the kernel always reads a full register


@dataclass(frozen=True)
class Draws:
    """
    words:     (n,) int32, the text after subsampling, -1 at the end of a sentence.
    reach:     (n,) int32, the window of each word: how many words on either side are its context.
    negatives: (n * negative + SPARE,) int32, the noise words of one word after another.
    """

    words: np.ndarray
    reach: np.ndarray
    negatives: np.ndarray


def draw(
    ids: np.ndarray, keep: np.ndarray, window: int, noise: np.ndarray, negative: int, rng: np.random.Generator
) -> Draws:
    """ids: (n,) int32. keep: see `keep_probability`. noise: a shuffled pool, read from a random position on.

    Raises BadInput if an id is not in the vocabulary, or if the pool is empty.
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
    """(words + 1,) float32: the probability of keeping a word, min(1, sqrt(t / f) + t / f), where f is its frequency in
    the text and t is `sample` (the form in word2vec.c; section 2.3 has only the square root). The last entry, which -1
    selects, is 1."""
    keep = np.ones(len(counts) + 1, np.float32)
    if sample > 0:
        ratio = sample * counts.sum() / np.maximum(counts, 1)
        keep[:-1] = np.minimum(1, np.sqrt(ratio) + ratio)
    return keep


def noise_pool(counts: np.ndarray, rng: np.random.Generator, size: int = 2**22, power: float = 0.75) -> np.ndarray:
    """(size,) int32: words drawn from counts ** 3/4 (section 2.2), in random order.

    Drawn at even steps of the cumulative distribution, from a random start, so that each word's frequency is exact to
    one in `size`. Raises BadInput if all counts are 0.
    """
    cumulative = np.cumsum(counts.astype(np.float64) ** power)
    if not len(cumulative) or not cumulative[-1] > 0:
        raise BadInput(f"no noise words: none of the {len(counts)} words occurs in the text")
    steps = (np.arange(size) + rng.random()) / size * cumulative[-1]
    steps = np.minimum(steps, np.nextafter(cumulative[-1], 0))  # rounding must not go past the last word
    each = np.diff(np.searchsorted(steps, cumulative), prepend=0)
    return rng.permutation(np.repeat(np.arange(len(counts), dtype=np.int32), each))


class Pieces(Dataset):
    """A flat array of ids as a map-style dataset of pieces of `PIECE` words. A piece ends like a sentence: windows do
    not cross into the next piece.

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
    """(contexts, targets). contexts: (windows, 2 * window) int64, -1 where there is no word. targets: (windows, 1 +
    negative) int64, the centre word first."""
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
