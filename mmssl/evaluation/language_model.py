"""How well a recurrent language model predicts a held-out text, compared with n-gram counts.

Every symbol but the first is scored once, given the text before it: nats, the mean of -log p, and bits, nats / log 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.plain_text import fenced

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


STRIPS = 32  # parts of the text that are read in parallel
CONTEXT = 256  # symbols that are read before a strip but not scored
PIECE = 512  # symbols of each strip in one forward pass
TEMPERATURES = (0.5, 0.8, 1.0)
LENGTH = 300  # symbols of each sample
COUNTED = 20_000_000  # the baselines count at most this many symbols, the last ones of the training text
SCORED = 5_000_000  # at most this many held-out symbols are scored, the first ones


class LanguageModelEvaluation(Evaluation):
    """Measures a method's `model` on the held-out text.

    train, held_out: (symbols,) integers below `vocabulary`. unit: what a symbol is, "character" or "byte". tokenizer,
    prompt: to show samples of the model.
    """

    def __init__(
        self,
        train: np.ndarray,
        held_out: np.ndarray,
        vocabulary: int,
        unit: str = "character",
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompt: str = "",
    ) -> None:
        self.train, self.held_out, self.vocabulary, self.unit = train[-COUNTED:], held_out[:SCORED], vocabulary, unit
        self.tokenizer, self.prompt = tokenizer, prompt
        self.units = (
            f"Nats and bits per {unit}, lower is better; 5-gram: interpolated Kneser-Ney on the same training text."
        )

    def __call__(self, method) -> dict[str, float]:
        return self.results(nats(method.model, torch.from_numpy(self.held_out.astype(np.int64))))

    def baselines(self, method) -> Columns:
        """Unigram and 5-gram counts of the training text."""
        orders = {"unigram": 1, "5-gram": 5}
        return {name: self.results(n_gram(self.train, self.held_out, self.vocabulary, n)) for name, n in orders.items()}

    def text(self, method) -> str:
        """The model's continuations of the prompt, at several temperatures."""
        if not self.prompt:
            return ""
        written = samples(method.model, self.tokenizer, self.prompt, TEMPERATURES, LENGTH)
        parts = [f"Temperature {temperature}:\n\n{fenced(text)}" for temperature, text in written.items()]
        heading = f"Continuations of the first {len(self.prompt)} symbols of the held-out text:"
        return "\n\n".join([heading, *parts])

    def results(self, nats: float) -> dict[str, float]:
        return {f"nats_per_{self.unit}": nats, f"bits_per_{self.unit}": nats / math.log(2)}


@torch.no_grad()
def nats(model: PreTrainedModel, ids: Tensor) -> float:
    """Mean nats over `ids` (symbols,) except the first, which has no context.

    The text is cut into STRIPS, and the model reads CONTEXT symbols before each one (none before the first strip).
    model: takes input_ids, attention_mask and state; gives logits and state.
    """
    predicted = len(ids) - 1
    length = math.ceil(predicted / STRIPS)
    # (strips, context + length): positions of the symbols that are read; the symbol after each is predicted
    at = torch.arange(STRIPS)[:, None] * length + torch.arange(-CONTEXT, length)
    scored = (torch.arange(-CONTEXT, length) >= 0) & (at < predicted)
    read, next_one = ids[at.clamp(0, predicted)], ids[(at + 1).clamp(0, predicted)]
    device, total, state = next(model.parameters()).device, 0.0, None
    for piece in range(0, at.shape[1], PIECE):
        now = slice(piece, piece + PIECE)
        known = (at[:, now] >= 0).to(device)
        output = model(read[:, now].to(device), attention_mask=known, state=state, use_cache=True)
        state = output.state
        finite(output.logits, "logits of the language model")
        each = F.cross_entropy(output.logits.float().transpose(1, 2), next_one[:, now].to(device), reduction="none")
        total += each.double()[scored[:, now].to(device)].sum().item()
    return total / predicted


def entropy(ids: np.ndarray) -> float:
    """Nats per symbol of a model that knows the frequency of each symbol in this text."""
    frequency = np.unique(ids, return_counts=True)[1] / len(ids)
    return float(-(frequency * np.log(frequency)).sum())


def n_gram(train: np.ndarray, held_out: np.ndarray, vocabulary: int, order: int) -> float:
    """Mean nats over `held_out` except the first symbol, under interpolated Kneser-Ney counts of `train`. Each symbol
    is predicted from the `order` - 1 before it (Chen & Goodman 1999, section 2.7, one discount for each length)."""
    return float(-np.log(n_gram_probabilities(train, held_out, vocabulary, order)[1:]).mean())


def n_gram_probabilities(train: np.ndarray, held_out: np.ndarray, vocabulary: int, order: int) -> np.ndarray:
    """(symbols of held_out,): the probability of each one, given those before it.

    The longest sequences count each occurrence; a shorter one counts the different symbols that occur before it, since
    only a new context falls back to it. Below unigrams, all symbols are equally likely.
    """
    from pandas import factorize  # hashes where np.unique sorts: seconds instead of minutes

    ids, n = np.concatenate([train, held_out]).astype(np.int64), len(train)
    # number[k]: (symbols,), equal where the last k symbols are equal, counted from 0 in order of first occurrence;
    # renumbered at each length, to avoid overflow
    number = [np.zeros(len(ids), np.int32)]
    for k in range(order):
        earlier = np.concatenate([np.full(k, vocabulary), ids[: len(ids) - k]])  # the symbol k places before
        number.append(factorize(number[-1] * np.int64(vocabulary + 1) + earlier)[0].astype(np.int32))
    # the number of the context before each symbol; 0 if there is none
    context = [number[0]] + [np.concatenate([np.zeros(1, np.int32), of[:-1] + 1]) for of in number[1:]]
    probability = np.full(len(held_out), 1 / vocabulary)
    for k in range(1, order + 1):
        sequences, before = number[k][:n], context[k - 1][:n]
        if k < order:  # count each different symbol before it once
            first = _firsts(number[k + 1][:n])
            sequences, before = sequences[first], before[first]
        count = np.bincount(sequences, minlength=number[k].max() + 1)
        each = _firsts(factorize(sequences)[0])  # every sequence once
        total = np.bincount(before, minlength=context[k - 1].max() + 1)
        kinds = np.bincount(before[each], minlength=len(total))
        once, twice = (count == 1).sum(), (count == 2).sum()
        discount = once / (once + 2 * twice) if once and twice else 0.5
        mine, history = count[number[k][n:]], context[k - 1][n:]
        known = total[history] > 0
        kept = np.maximum(mine - discount, 0) + discount * kinds[history] * probability
        probability = np.where(known, kept / np.maximum(total[history], 1), probability)
    return probability


def _firsts(numbers: np.ndarray) -> np.ndarray:
    """Where each number stands first. numbers: counted in the order of first sight."""
    return np.flatnonzero(np.diff(np.maximum.accumulate(numbers), prepend=-1))


def samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, temperatures: Sequence[float], length: int
) -> dict[float, str]:
    """temperature -> `prompt` and `length` symbols that the model generates after it. The seed is fixed."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    written = {}
    for temperature in temperatures:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(0)
            ids = model.generate(
                **inputs, max_new_tokens=length, do_sample=True, temperature=temperature, top_k=0, top_p=1.0
            )
        written[temperature] = tokenizer.decode(ids[0], skip_special_tokens=True)
    return written
