import numpy as np
import pytest
import torch

from mmssl.data.text.skip_grams import SPARE, Draws, draw, keep_probability, noise_pool
from mmssl.kernels.word2vec_torch import update_window
from mmssl.methods.word2vec import LANES

kernel = pytest.importorskip("mmssl.kernels.word2vec")

WORDS, WIDTH = 12, 3 * LANES  # few words: contexts and negatives repeat within a window


def tables(seed=0, rows=WORDS):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.3, (rows, WIDTH)).astype(np.float32) for _ in range(2)]


def draws(negative, n=60, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, WORDS, n).astype(np.int32)
    noise = noise_pool(np.arange(WORDS, 0, -1), rng, 1000)
    return draw(ids, np.ones(WORDS + 1, np.float32), 4, noise, negative, rng)


def by_the_definition(draws, negative, learning_rate):
    inputs, outputs = map(torch.from_numpy, tables())
    words, total, pairs = draws.words.tolist(), 0.0, 0
    for at, centre in enumerate(words):
        if centre < 0:
            continue
        left = right = at
        while left > 0 and at - left < draws.reach[at] and words[left - 1] >= 0:
            left -= 1
        while right < len(words) - 1 and right - at < draws.reach[at] and words[right + 1] >= 0:
            right += 1
        contexts = words[left:at] + words[at + 1 : right + 1]
        noise = draws.negatives[at * negative : (at + 1) * negative].tolist()
        if contexts:
            total += update_window(inputs, outputs, contexts, centre, noise, learning_rate)
            pairs += len(contexts)
    return inputs.numpy(), outputs.numpy(), total, pairs


@pytest.mark.parametrize("negative", [1, 3, 5])
def test_kernel_makes_the_update_of_the_plain_form_on_the_same_draws(negative):
    d = draws(negative)
    inputs, outputs = tables()
    total, pairs = kernel.train_windows(d.words, d.reach, d.negatives, negative, inputs, outputs, 0, 0, 0.1)
    expected_inputs, expected_outputs, expected_total, expected_pairs = by_the_definition(d, negative, 0.1)
    np.testing.assert_allclose(inputs, expected_inputs, atol=1e-5)
    np.testing.assert_allclose(outputs, expected_outputs, atol=1e-5)
    assert pairs == expected_pairs
    assert total == pytest.approx(expected_total, rel=1e-5)


def test_more_than_five_negatives_go_in_groups_and_agree_to_first_order():
    d, rate = draws(12), 1e-3
    inputs, outputs = tables()
    kernel.train_windows(d.words, d.reach, d.negatives, 12, inputs, outputs, 0, 0, rate)
    expected_inputs, expected_outputs, *_ = by_the_definition(d, 12, rate)
    np.testing.assert_allclose(inputs, expected_inputs, atol=20 * rate**2 * 12)
    np.testing.assert_allclose(outputs, expected_outputs, atol=20 * rate**2 * 12)


def test_a_negative_equal_to_the_centre_word_is_left_out():
    inputs, outputs = tables()
    d = Draws(np.array([3, 7], np.int32), np.ones(2, np.int32), np.array([3] * 5 + [7] * 5 + [0] * SPARE, np.int32))
    before = inputs[7] @ outputs[3]
    kernel.train_windows(d.words, d.reach, d.negatives, 5, inputs, outputs, 0, 0, 0.1)
    assert inputs[7] @ outputs[3] > before  # drawn to its neighbour, and not pushed away from it five times


def test_windows_do_not_cross_the_end_of_a_sentence():
    inputs, outputs = tables()
    before = inputs.copy()
    d = Draws(np.array([3, -1, 7], np.int32), np.full(3, 4, np.int32), np.zeros(15 + SPARE, np.int32))
    assert kernel.train_windows(d.words, d.reach, d.negatives, 5, inputs, outputs, 0, 0, 0.1) == (0, 0)
    assert (inputs == before).all()


def test_an_empty_text_is_no_work():
    empty = np.empty(0, np.int32)
    assert kernel.train_windows(empty, empty, np.zeros(SPARE, np.int32), 5, *tables(), 0, 0, 0.1) == (0, 0)


def test_the_loss_of_zero_vectors_is_log_2_for_every_question():
    d = draws(5)
    inputs = np.zeros((WORDS, WIDTH), np.float32)
    noise = np.full_like(d.negatives, WORDS - 1)
    words = np.where(d.words == WORDS - 1, 0, d.words)  # no negative is left out
    total, pairs = kernel.train_windows(words, d.reach, noise, 5, inputs, inputs.copy(), 0, 0, 0.0)
    assert total / pairs == pytest.approx(6 * np.log(2), rel=1e-6)


def test_a_nan_in_the_tables_is_a_nan_in_the_loss():
    d = draws(5)
    inputs, outputs = tables()
    inputs[3, 1] = np.nan
    total, _ = kernel.train_windows(d.words, d.reach, d.negatives, 5, inputs, outputs, 0, 0, 0.1)
    assert np.isnan(total)


def test_private_rows_of_one_thread_end_where_shared_rows_would():
    d, hot = draws(5), 4
    shared = tables()
    kernel.train_windows(d.words, d.reach, d.negatives, 5, *shared, 0, 0, 0.1)
    private = [np.concatenate([table, table[:hot]]) for table in tables()]
    before = [table[:hot].copy() for table in private]
    kernel.train_windows(d.words, d.reach, d.negatives, 5, *private, hot, WORDS, 0.1)
    for table, start, expected in zip(private, before, shared, strict=True):
        kernel.exchange(table, hot, WORDS, start)
        np.testing.assert_allclose(table[:WORDS], expected, atol=1e-5)


def test_exchange_adds_what_every_thread_has_learned():
    table = np.zeros((6, LANES), np.float32)  # two shared rows, then two private ones for each of two threads
    before = [table[:2].copy() for _ in range(2)]
    table[2], table[4] = 1, 10
    for thread in (0, 1, 0):
        kernel.exchange(table, 2, 2 + 2 * thread, before[thread])
    assert (table[0] == 11).all() and (table[2] == 11).all() and (table[4] == 11).all() and (table[1] == 0).all()


def test_frequent_words_are_thinned_out_as_in_word2vec_c():
    counts = np.array([900, 90, 10])
    keep = keep_probability(counts, 0.01)
    share = 0.01 / (counts / counts.sum())
    np.testing.assert_allclose(keep[:-1], np.minimum(1, np.sqrt(share) + share), rtol=1e-6)
    assert keep[-1] == 1  # sentence ends stay
    assert (keep_probability(counts, 0) == 1).all()


def test_noise_follows_the_counts_to_the_power_three_quarters_and_misses_no_word():
    counts = np.array([1000, 100, 10, 1])
    pool = noise_pool(counts, np.random.default_rng(0), 100_000)
    share = np.bincount(pool) / len(pool)
    np.testing.assert_allclose(share, counts**0.75 / (counts**0.75).sum(), atol=1e-4)


def test_noise_words_run_on_from_the_start_of_a_pool_that_is_too_short():
    d = draw(
        np.zeros(100, np.int32), np.ones(2, np.float32), 5, np.arange(7, dtype=np.int32), 5, np.random.default_rng(0)
    )
    assert len(d.negatives) == 500 + SPARE
    assert (np.diff(d.negatives) % 7 == 1).all()
