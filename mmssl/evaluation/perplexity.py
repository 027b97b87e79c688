"""How well a causal language model over tokens predicts held-out documents, compared with n-gram counts of the tokens.

Every token is scored once, given at least half a sequence of its document where there is so much. Perplexity depends on
the tokenizer; bits per byte does not, and compares models with different ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data.text.documents import each
from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.evaluation.language_model import COUNTED, TEMPERATURES, n_gram_probabilities, samples
from mmssl.plain_text import fenced

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from mmssl.methods.causal_lm import CausalLM


SCORED = 500_000  # at most so many characters of held-out text are scored, the first ones
PROMPT = 60  # characters, about
WRITTEN = 100  # tokens of each sample, at most


class Perplexity(Evaluation):
    """
    train, held_out: (tokens,) int32, documents with the tokens around them (see `packed.number`). size: bytes of the
    held-out documents, as UTF-8. length: tokens of a sequence. vocabulary: number of tokens. tokenizer, prompt: to show
    samples of the model.
    """

    units = (
        "Perplexity per token, bits per byte of UTF-8 text (comparable between tokenizers), accuracy of the likeliest "
        "next token in per cent; 5-gram: interpolated Kneser-Ney over the same tokens."
    )

    def __init__(
        self,
        train: np.ndarray,
        held_out: np.ndarray,
        size: int,
        length: int,
        vocabulary: int,
        batch_size: int = 16,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompt: str = "",
    ) -> None:
        self.train, self.held_out, self.size, self.vocabulary = train[-COUNTED:], held_out, size, vocabulary
        self.length, self.batch_size = min(length, len(held_out)), batch_size
        self.tokenizer, self.prompt = tokenizer, prompt

    @torch.no_grad()
    def __call__(self, method: CausalLM) -> dict[str, float]:
        nats = right = tokens = 0.0
        for input_ids, targets, new in self._sequences(method.model.device):
            scored = new & method.scored(targets)
            features = finite(method.features(input_ids), "features of the language model")
            _, of_each, hit = method.cross_entropy(features, targets, scored)
            nats += of_each.double()[scored].sum().item()
            right += hit[scored].sum().item()
            tokens += scored.sum().item()
        return self.results(nats, tokens) | {"accuracy": 100 * right / tokens}

    def baselines(self, method: CausalLM) -> Columns:
        """Unigram and 5-gram counts of the training tokens. They cross the ends of documents."""
        scored = method.scored(torch.from_numpy(np.array(self.held_out))).numpy()  # a copy: the file is read-only
        columns = {}
        for name, order in {"unigram": 1, "5-gram": 5}.items():
            probability = n_gram_probabilities(self.train, self.held_out, self.vocabulary, order)[scored]
            columns[name] = self.results(float(-np.log(probability).sum()), len(probability))
        return columns

    def text(self, method: CausalLM) -> str:
        """The model's continuations of the prompt, at several temperatures."""
        if not self.prompt:
            return ""
        used = len(self.tokenizer(self.prompt)["input_ids"])
        room = min(WRITTEN, self.tokenizer.model_max_length - used)
        if room < 1:
            return ""
        written = samples(method.model, self.tokenizer, self.prompt, TEMPERATURES, room)
        parts = [f"Temperature {temperature}:\n\n{fenced(text)}" for temperature, text in written.items()]
        return "\n\n".join(["Continuations of the beginning of a held-out document:", *parts])

    def results(self, nats: float, tokens: float) -> dict[str, float]:
        """nats: the sum over so many tokens."""
        return {"perplexity": math.exp(min(nats / tokens, 700)), "bits_per_byte": nats / math.log(2) / self.size}

    def _sequences(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(input_ids, targets, new), each (batch, length). new: bool, True = not in the sequence before. Sequences
        overlap by a half, so that tokens have context; the last one ends with the last token."""
        last = len(self.held_out) - self.length
        starts = np.array([*range(0, last, max(1, self.length // 2)), last])
        ends = np.concatenate([[0], starts[:-1] + self.length])  # of the sequence before
        for some in range(0, len(starts), self.batch_size):
            at = starts[some : some + self.batch_size, None] + np.arange(-1, self.length)
            # the token before the first is the last one, which ends a document, too
            ids = torch.from_numpy(self.held_out[at % len(self.held_out)].astype(np.int64)).to(device)
            new = torch.from_numpy(at[:, 1:] >= ends[some : some + self.batch_size, None]).to(device)
            yield ids[:, :-1], ids[:, 1:].contiguous(), new


def beginning(data: Dataset, characters: int = SCORED) -> Dataset:
    """The first documents, with so many characters at most; the last one may be cut."""
    from datasets import Dataset

    texts: list[str] = []
    for text in each(data):
        texts.append(text[:characters])
        characters -= len(text)
        if characters <= 0:
            break
    return Dataset.from_dict({"text": texts})


def size(texts: Sequence[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode()) for text in texts)


def prompt(text: str) -> str:
    """The first PROMPT characters of a text, cut at a blank if there is one."""
    return (text[:PROMPT].rpartition(" ")[0] if len(text) > PROMPT else text).strip() or text[:PROMPT]
