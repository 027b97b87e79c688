from __future__ import annotations

from functools import partial

import numpy as np
import torch

from mmssl.data.text.skip_grams import Pieces
from mmssl.kernels import SENTENCE_END
from mmssl.methods.word2vec import Word2Vec
from mmssl.models.word_vectors import tokenizer
from mmssl.training import steps
from tiny import Tiny

GROUPS, SIZE = 6, 5
WORDS = [f"{chr(97 + i // SIZE)}{i % SIZE}" for i in range(GROUPS * SIZE)]


def text() -> np.ndarray:
    """Twelve pieces of sentences of nine words, all of one group."""
    rng = np.random.default_rng(0)
    sentences = rng.integers(0, GROUPS, (1200, 1)) * SIZE + rng.integers(0, SIZE, (1200, 9))
    return np.pad(sentences, ((0, 0), (0, 1)), constant_values=SENTENCE_END).ravel().astype(np.int32)


def sgd(learning_rate: float, method: Word2Vec) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(method.parameters(), lr=learning_rate)]  # carries the rate; it never steps


def tiny(batched: bool, learning_rate: float) -> Tiny:
    return Tiny(
        Word2Vec(WORDS, np.full(len(WORDS), 100), dimension=12, sample=0, threads=1, batched=batched),
        Pieces(text()),
        batch_size=4,
        collate_fn=lambda batch: batch,
        processor=tokenizer(WORDS, plain=True),
        example={"text": ["A0, unknown b1!", "c2"]},
        step=steps.in_place,
        optimizers=partial(sgd, learning_rate),
    )


VARIANTS = {
    "kernel": partial(tiny, batched=False, learning_rate=0.01),
    "batched": partial(tiny, batched=True, learning_rate=0.1),
}
