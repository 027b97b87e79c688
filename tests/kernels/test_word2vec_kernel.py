import numpy as np
import pytest
import torch
from generated import fast
from hypothesis import example, given
from hypothesis import strategies as st

from mmssl.data.text.skip_grams import SPARE, Draws, draw, keep_probability, noise_pool
from mmssl.errors import BadInput
from mmssl.kernels.simd import LANES
from mmssl.kernels.word2vec_torch import update_window

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


def by_the_definition(draws, negative, learning_rate, start=tables):
    inputs, outputs = map(torch.from_numpy, start())
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


def test_a_pool_of_one_noise_word_is_enough_and_of_none_is_refused():
    ids, keep = np.zeros(10, np.int32), np.ones(2, np.float32)
    d = draw(ids, keep, 1, np.zeros(1, np.int32), 5, np.random.default_rng(0))
    assert (d.negatives == 0).all() and len(d.negatives) == 50 + SPARE
    with pytest.raises(BadInput, match="the pool of noise words is empty"):
        draw(ids, keep, 1, np.zeros(0, np.int32), 5, np.random.default_rng(0))
    for counts in ([], [0, 0]):
        with pytest.raises(BadInput, match="no noise words"):
            noise_pool(np.array(counts, np.int64), np.random.default_rng(0))


def test_no_noise_word_is_beyond_the_vocabulary_where_the_last_step_is_rounded_up():
    class Last:  # of all that a generator may draw
        permutation = staticmethod(np.asarray)

        @staticmethod
        def random():
            return 1 - 2**-53

    for counts in ([3], [5, 2], [5, 2, 0]):
        assert noise_pool(np.array(counts), Last(), 2**12).max() == np.flatnonzero(counts)[-1]


@pytest.mark.parametrize("ids", [[0, 2], [-2]])
def test_ids_that_the_vocabulary_lacks_are_refused(ids):
    with pytest.raises(BadInput, match="for a vocabulary of 2 words"):
        draw(np.array(ids, np.int32), np.ones(3, np.float32), 5, np.zeros(9, np.int32), 5, np.random.default_rng(0))


@st.composite
def any_text(draw_one):
    """(draws, negative, words of the vocabulary, registers of a row): also no text, one word, windows of all of it."""
    vocabulary, negative = draw_one(st.integers(1, 6)), draw_one(st.integers(0, 5))
    words = draw_one(st.lists(st.integers(-1, vocabulary - 1), max_size=30))
    word, reach = st.integers(0, vocabulary - 1), draw_one(st.sampled_from([0, 1, 3, 40, 2**31 - 1]))
    reaches = draw_one(st.lists(st.integers(0, reach), min_size=len(words), max_size=len(words)))
    needed = len(words) * negative + SPARE
    negatives = draw_one(st.lists(word, min_size=needed, max_size=needed))
    parts = (np.array(part, np.int32) for part in (words, reaches, negatives))
    return Draws(*parts), negative, vocabulary, draw_one(st.integers(1, 3))


def start_of(vocabulary, registers):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.3, (vocabulary, registers * LANES)).astype(np.float32) for _ in range(2)]


@fast
@given(any_text(), st.booleans())
@example((Draws(*np.zeros((2, 1), np.int32), np.zeros(SPARE, np.int32)), 0, 1, 1), True)
def test_every_text_makes_the_update_of_the_plain_form(text, private):
    d, negative, vocabulary, registers = text
    hot = vocabulary if private else 0
    inputs, outputs = (np.concatenate([t, t[:hot]]) for t in start_of(vocabulary, registers))
    before = [table[:hot].copy() for table in (inputs, outputs)]
    total, pairs = kernel.train_windows(d.words, d.reach, d.negatives, negative, inputs, outputs, hot, vocabulary, 0.02)
    for table, rows in zip((inputs, outputs), before, strict=True):
        kernel.exchange(table, hot, vocabulary, rows)
    expected_inputs, expected_outputs, expected_total, expected_pairs = by_the_definition(
        d, negative, 0.02, lambda: start_of(vocabulary, registers)
    )
    np.testing.assert_allclose(inputs[:vocabulary], expected_inputs, atol=1e-4)
    np.testing.assert_allclose(outputs[:vocabulary], expected_outputs, atol=1e-4)
    assert pairs == expected_pairs and total == pytest.approx(expected_total, rel=1e-4, abs=1e-6)


@fast
@given(any_text(), st.integers(6, 14))
def test_any_number_of_negatives_stays_within_the_tables(text, negative):
    d, _, vocabulary, registers = text
    noise = np.resize(d.negatives, len(d.words) * negative + SPARE)
    inputs, outputs = start_of(vocabulary, registers)
    total, _ = kernel.train_windows(d.words, d.reach, noise, negative, inputs, outputs, 0, 0, 0.001)
    expected_inputs, expected_outputs, expected_total, _ = by_the_definition(
        Draws(d.words, d.reach, noise), negative, 0.001, lambda: start_of(vocabulary, registers)
    )
    np.testing.assert_allclose(inputs, expected_inputs, atol=5e-3)  # in groups: the same to first order
    np.testing.assert_allclose(outputs, expected_outputs, atol=5e-3)
    assert total == pytest.approx(expected_total, rel=1e-2, abs=1e-6)


WRONG = {
    "a word beyond the table": ({"words": np.array([0, WORDS], np.int32)}, "words: 12 is beyond the table's 12 rows"),
    "a noise word beyond it": ({"negatives": np.full(15, WORDS, np.int32)}, "negatives: 12 is beyond"),
    "a negative noise word": ({"negatives": np.full(15, -1, np.int32)}, "negatives: -1 is below 0"),
    "too little noise": (
        {"negatives": np.zeros(14, np.int32)},
        "14 negatives; must be 2 and at least 15",
    ),
    "a reach too few": ({"reach": np.ones(1, np.int32)}, "2 words have 1 reaches"),
    "a negative reach": ({"reach": np.full(2, -1, np.int32)}, "reach: -1 is below 0"),
    "fewer than no negatives": ({"negative": -1}, "-1 negatives"),
    "words of another type": ({"words": np.zeros(2, np.int64)}, "words: int64 of 1 dimensions"),
    "rows that end inside a register": (
        {"inputs": np.zeros((WORDS, LANES + 1), np.float32)},
        "must be writable float32",
    ),
    "tables of another type": ({"outputs": np.zeros((WORDS, WIDTH))}, "outputs is float64"),
    "tables of two sizes": ({"outputs": np.zeros((WORDS, LANES), np.float32)}, "must have one shape"),
    "a table with gaps": ({"inputs": np.zeros((WORDS, 2 * WIDTH), np.float32)[:, :WIDTH]}, "without gaps"),
    "private rows beyond it": ({"hot": 2, "private": WORDS - 1}, "private ones cannot be 11 to 13"),
    "negative private rows": ({"hot": -1}, "private ones cannot be"),
}


@pytest.mark.parametrize(("changed", "said"), WRONG.values(), ids=WRONG)
def test_arguments_that_do_not_fit_are_refused(changed, said):
    right = {"words": np.zeros(2, np.int32), "reach": np.ones(2, np.int32), "negatives": np.zeros(15, np.int32)}
    right |= {"negative": 5, "inputs": tables()[0], "outputs": tables()[1], "hot": 0, "private": 0}
    with pytest.raises(ValueError, match=said):
        kernel.train_windows(**right | changed, learning_rate=0.1)


def test_an_exchange_with_copies_of_another_size_is_refused():
    with pytest.raises(ValueError, match="3 rows of the table"):
        kernel.exchange(tables()[0], 3, 4, np.zeros((2, WIDTH), np.float32))
