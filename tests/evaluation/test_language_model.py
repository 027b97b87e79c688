import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from tiny.char_rnn import TEXT, model

from mmssl.data.text import characters
from mmssl.evaluation import language_model
from mmssl.evaluation.language_model import LanguageModelEvaluation, entropy, n_gram, n_gram_probabilities, nats

LETTERS = np.frombuffer(b"abracadabra abracadabra cabra" * 3, np.uint8)


def ids(n: int) -> torch.Tensor:
    network, tokenizer = model()
    return torch.from_numpy(characters.encode(TEXT, tokenizer, "characters").astype(np.int64))[:n]


@pytest.mark.parametrize("n", [33, 400, 401])
def test_every_symbol_but_the_first_is_scored_once(n, monkeypatch):
    """With a context that reaches back to the beginning, strips give what one reading of the whole text gives."""
    network, text = model()[0].eval(), ids(n)
    monkeypatch.setattr(language_model, "CONTEXT", n)
    monkeypatch.setattr(language_model, "PIECE", 50)
    with torch.no_grad():
        whole = network(text[None], labels=text[None]).loss.item()
    assert nats(network, text) == pytest.approx(whole, abs=1e-6)


def test_a_strip_is_read_with_what_stands_before_it(monkeypatch):
    network, text = model()[0].eval(), ids(400)
    with_context = nats(network, text)
    monkeypatch.setattr(language_model, "CONTEXT", 0)
    assert nats(network, text) != pytest.approx(with_context, abs=1e-6)


def plain_kneser_ney(train: list, history: tuple, symbol, vocabulary: int, order: int) -> float:
    """The same formula, read off the paper: dictionaries and recursion."""

    text = [None] * order + train  # before the text stands nothing

    def counts(n: int) -> Counter:
        ends = range(order, len(text))
        if n == order:
            return Counter(tuple(text[i - n + 1 : i + 1]) for i in ends)
        before = defaultdict(set)
        for i in ends:
            before[tuple(text[i - n + 1 : i + 1])].add(text[i - n])
        return Counter({gram: len(kinds) for gram, kinds in before.items()})

    def probability(n: int, history: tuple) -> float:
        if n == 0:
            return 1 / vocabulary
        lower = probability(n - 1, history[1:])
        count = counts(n)
        mine = {gram[-1]: c for gram, c in count.items() if gram[:-1] == history}
        if not mine:
            return lower
        once, twice = (sum(c == k for c in count.values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        kept = max(mine.get(symbol, 0) - discount, 0) + discount * len(mine) * lower
        return kept / sum(mine.values())

    return probability(order, history)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_n_gram_model_agrees_with_a_plain_one(order):
    train, held_out = LETTERS[:60], LETTERS[50:]
    found = n_gram_probabilities(train, held_out, 256, order)
    for i in range(order, len(held_out)):
        history = tuple(held_out[i - order + 1 : i].tolist())
        expected = plain_kneser_ney(train.tolist(), history, int(held_out[i]), 256, order)
        assert found[i] == pytest.approx(expected, rel=1e-9), i


@pytest.mark.parametrize("order", [1, 3, 5])
def test_n_gram_probabilities_of_all_symbols_sum_to_one(order):
    history = LETTERS[20:25]
    total = sum(
        n_gram_probabilities(LETTERS[:60], np.append(history, np.uint8(symbol)), 128, order)[-1]
        for symbol in range(128)
    )
    assert total == pytest.approx(1)


def test_longer_histories_predict_better_and_none_predicts_what_is_random():
    rng = np.random.default_rng(0)
    letters = np.frombuffer(TEXT.encode(), np.uint8)
    losses = [n_gram(letters[:-500], letters[-500:], 128, order) for order in (1, 2, 3, 5)]
    assert losses[0] > 2 * losses[1] > 2 * losses[2] > 0.5 and losses[3] < 0.6
    noise = rng.integers(0, 16, 20_000)
    assert n_gram(noise[:-5000], noise[-5000:], 16, 5) > math.log(16) - 0.01


def test_entropy_of_equally_frequent_symbols_is_the_logarithm_of_their_number():
    assert entropy(np.tile(np.arange(8), 5)) == pytest.approx(math.log(8))


def test_the_evaluation_reports_nats_and_bits_beside_both_baselines():
    text = ids(2000).numpy()
    evaluation = LanguageModelEvaluation(text[:1500], text[1500:], int(text.max()) + 3, "byte")

    class Method:
        model = model()[0].eval()

    figures = evaluation(Method())
    assert figures["bits_per_byte"] == pytest.approx(figures["nats_per_byte"] / math.log(2))
    baselines = evaluation.baselines(Method())
    assert list(baselines) == ["unigram", "5-gram"]
    assert baselines["5-gram"]["nats_per_byte"] < baselines["unigram"]["nats_per_byte"] < figures["nats_per_byte"] + 0.5
