"""Skip-gram with negative sampling on the CPU: one window of text as one small matrix product.

Mikolov et al. 2013 (arXiv:1310.4546) train a word pair at a time, with dot products between single vectors. Ji et al.
2016 (pWord2Vec, arXiv:1604.04661) let all context words of a centre word share its negatives, so that a window becomes
(contexts x width) @ (width x targets): the same updates, in an order that uses every number loaded several times. Recht
et al. 2011 (Hogwild, arXiv:1106.5730) let threads write to the same tables without locks. Here each thread moreover
keeps private copies of the most frequent rows and exchanges what it learned in them every few thousand words, as
pWord2Vec does between machines: those rows are in every window, and would wander from one core's cache to the other's
all the time.

    words:     (n,) int32, the text after subsampling, -1 at the end of a sentence
    reach:     (n,) int32, how many words to either side of each word are its context (the dynamic window)
    negatives: (n * negative + 5,) int32, the noise words of each word in turn; the last five are read, not used
    inputs:    (rows, width) float32, the vectors of words as context: these become the word vectors
    outputs:   the same shape, the vectors of words as centre and as noise
    width:     a multiple of LANES, so that no row ends inside a register; the columns beyond the model's are zero
    hot, private: word i < hot is row private + i for this thread; hot = 0 for one thread alone

The compiled loops read and write wherever these say. So the two functions for others, `train_windows` and `exchange`,
first look at every length, word and row, which takes less than a hundredth of the time of training on them.

`mmssl.kernels.word2vec_torch.update_window` is the same mathematics in plain torch, against which this is tested.
"""

import math

import numpy as np
from numba import njit

from mmssl.kernels import simd
from mmssl.kernels.compiled import compiled
from mmssl.kernels.simd import (
    LANES,
    SCORES,
    add,
    divide,
    exp,
    exponent,
    fma,
    load,
    load_scores,
    mantissa,
    multiply,
    prefetch,
    row_sums,
    splat,
    splat_scores,
    store,
    subtract,
)  # fmt: skip

AHEAD = 3  # windows between asking for a row and using it
TARGETS = 6  # the centre word and five negatives: with two context rows their sums fill the registers of AVX2


@njit(inline="always")
def _row(word, hot, private):
    return word + private if word < hot else np.int64(word)


@njit(inline="always")
def _rows(words, hot, private, spare):
    """The row of each word, 0 at the end of a sentence, and `spare` zeros."""
    rows = np.zeros(len(words) + spare, np.int64)
    for at in range(len(words)):
        rows[at] = _row(max(words[at], 0), hot, private)
    return rows


@njit(inline="always")
def _sentence_end(words, at):
    while at < len(words) and words[at] >= 0:
        at += 1
    return at


@njit(inline="always")
def _score_two(inputs, first, second, outputs, targets):
    """inputs[first] . outputs[target k] in lane k, inputs[second] . outputs[target k] in lane 8 + k."""
    t0, t1, t2, t3, t4, t5 = targets
    zero = splat(np.float32(0))
    a0, a1, a2, a3, a4, a5 = zero, zero, zero, zero, zero, zero
    b0, b1, b2, b3, b4, b5 = zero, zero, zero, zero, zero, zero
    for column in range(0, inputs.shape[1], LANES):  # twelve sums stay in registers; each load is used twice or more
        a, b = load(inputs, first, column), load(inputs, second, column)
        target = load(outputs, t0, column)
        a0, b0 = fma(a, target, a0), fma(b, target, b0)
        target = load(outputs, t1, column)
        a1, b1 = fma(a, target, a1), fma(b, target, b1)
        target = load(outputs, t2, column)
        a2, b2 = fma(a, target, a2), fma(b, target, b2)
        target = load(outputs, t3, column)
        a3, b3 = fma(a, target, a3), fma(b, target, b3)
        target = load(outputs, t4, column)
        a4, b4 = fma(a, target, a4), fma(b, target, b4)
        target = load(outputs, t5, column)
        a5, b5 = fma(a, target, a5), fma(b, target, b5)
    return row_sums(a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5)


@njit(inline="always")
def _update(inputs, rows, contexts, outputs, targets, step):
    """inputs[row c] += step[c] @ targets and targets += step.T @ contexts, `LANES` columns at a time."""
    t0, t1, t2, t3, t4, t5 = targets
    for column in range(0, inputs.shape[1], LANES):
        zero = splat(np.float32(0))
        target0, target1, target2 = load(outputs, t0, column), load(outputs, t1, column), load(outputs, t2, column)
        target3, target4, target5 = load(outputs, t3, column), load(outputs, t4, column), load(outputs, t5, column)
        change0, change1, change2, change3, change4, change5 = zero, zero, zero, zero, zero, zero
        for c in range(contexts):
            before = load(inputs, rows[c], column)
            after = before
            size = splat(step[c, 0])
            after, change0 = fma(size, target0, after), fma(size, before, change0)
            size = splat(step[c, 1])
            after, change1 = fma(size, target1, after), fma(size, before, change1)
            size = splat(step[c, 2])
            after, change2 = fma(size, target2, after), fma(size, before, change2)
            size = splat(step[c, 3])
            after, change3 = fma(size, target3, after), fma(size, before, change3)
            size = splat(step[c, 4])
            after, change4 = fma(size, target4, after), fma(size, before, change4)
            size = splat(step[c, 5])
            after, change5 = fma(size, target5, after), fma(size, before, change5)
            store(inputs, rows[c], column, after)
        # load again: the same negative may have been drawn twice, and other threads write here too
        store(outputs, t0, column, add(load(outputs, t0, column), change0))
        store(outputs, t1, column, add(load(outputs, t1, column), change1))
        store(outputs, t2, column, add(load(outputs, t2, column), change2))
        store(outputs, t3, column, add(load(outputs, t3, column), change3))
        store(outputs, t4, column, add(load(outputs, t4, column), change4))
        store(outputs, t5, column, add(load(outputs, t5, column), change5))


@njit(inline="always")
def _minus_log(product, exponents, total, scratch):
    """-log(product * 2 ** exponents), over all lanes; NaN where `total`, the sum of the same factors, is NaN."""
    store(scratch, 0, 0, product)
    store(scratch, 1, 0, exponents)
    loss = 0.0
    for k in range(SCORES):
        loss -= math.log(scratch[0, k]) + scratch[1, k] * math.log(2.0)
    store(scratch, 0, 0, total)
    return loss + 0.0 * scratch[0].sum()


@njit(nogil=True)
def _target_signs(negative):
    """(tiles, SCORES): 1 for the centre word, which comes first, -1 for a negative, 0 for a lane without a word; twice,
    for two context words."""
    signs = np.zeros((-(-(negative + 1) // TARGETS), SCORES), np.float32)
    for k in range(negative + 1):
        signs[k // TARGETS, k % TARGETS] = -1
    signs[0, 0] = 1
    signs[:, 8:] = signs[:, :8]
    return signs


@njit(inline="always")
def _clash(centre, targets, tile):
    """True where a negative is the centre word itself: word2vec.c leaves that negative out."""
    t0, t1, t2, t3, t4, t5 = targets
    return (
        (t1 == centre)
        | (t2 == centre)
        | (t3 == centre)
        | (t4 == centre)
        | (t5 == centre)
        | ((tile > 0) & (t0 == centre))
    )


@njit(inline="always")
def _prefetch_window(rows, negatives, negative, inputs, outputs, hot, private, at):
    _prefetch_row(inputs, rows[at])
    _prefetch_row(outputs, rows[at])
    for k in range(at * negative, (at + 1) * negative):
        _prefetch_row(outputs, _row(negatives[k], hot, private))


@njit(inline="always")
def _prefetch_row(table, row):
    for column in range(0, table.shape[1], 16):  # a cache line is 16 floats
        prefetch(table, row, column)


def train_windows(
    words: np.ndarray,
    reach: np.ndarray,
    negatives: np.ndarray,
    negative: int,
    inputs: np.ndarray,
    outputs: np.ndarray,
    hot: int,
    private: int,
    learning_rate: float,
) -> tuple[float, int]:
    """Train on every window of `words`, one after the other. Returns (summed loss, pairs of centre and context word).

    The loss of a pair is -log sigmoid(score) of the centre word, less log sigmoid(-score) of each of its negatives.
    Raises ValueError where the arguments do not fit each other; then nothing has changed.
    """
    for name, table in (("inputs", inputs), ("outputs", outputs)):
        _check_table(name, table)
        _check_private(name, table, hot, private)
    if inputs.shape != outputs.shape:
        raise ValueError(f"inputs are {inputs.shape} and outputs {outputs.shape}; they must have one shape")
    if negative < 0:
        raise ValueError(f"{negative} negatives; must be 0 or more")
    needed = len(words) * negative + TARGETS - 1
    if len(reach) != len(words) or len(negatives) < needed:
        raise ValueError(
            f"{len(words)} words have {len(reach)} reaches and {len(negatives)} negatives; must be {len(words)} and at "
            f"least {needed}"
        )
    # a window reaches no further than the text; longer ones would only cost memory
    reach = np.minimum(_int32("reach", reach, 0, None), len(words)).astype(np.int32)
    words = _int32("words", words, None, len(inputs))
    negatives = _int32("negatives", negatives[:needed], 0, len(inputs))
    return _train_windows(
        words, reach, negatives, int(negative), inputs, outputs, int(hot), int(private), float(learning_rate)
    )


def exchange(table: np.ndarray, hot: int, private: int, before: np.ndarray) -> None:
    """Add the changes of a thread's private copies since `before`, (hot, width), to the shared rows, and copy these
    back. Raises ValueError if the arguments do not fit together."""
    _check_table("table", table)
    _check_table("before", before)
    _check_private("table", table, hot, private)
    if before.shape != (hot, table.shape[1]):
        raise ValueError(f"before is {before.shape}; {hot} rows of the table {table.shape} were copied")
    _exchange(table, int(hot), int(private), before)


def _check_table(name: str, table: np.ndarray) -> None:
    whole = table.ndim == 2 and table.flags.c_contiguous and table.flags.writeable and table.flags.aligned
    if not whole or table.dtype != np.float32 or table.shape[1] % LANES:
        raise ValueError(
            f"{name} is {table.dtype} {table.shape}; must be writable float32 (rows, n * {LANES}) without gaps"
        )


def _check_private(name: str, table: np.ndarray, hot: int, private: int) -> None:
    if hot < 0 or private < 0 or private + hot > len(table):
        raise ValueError(f"{name} has {len(table)} rows; private ones cannot be {private} to {private + hot}")


def _int32(name: str, numbers: np.ndarray, least: int | None, beyond: int | None) -> np.ndarray:
    """`numbers` without gaps and writable, one type for the compiled code; all in [least, beyond)."""
    if numbers.dtype != np.int32 or numbers.ndim != 1:
        raise ValueError(f"{name}: {numbers.dtype} of {numbers.ndim} dimensions; must be int32 of one")
    if len(numbers) and least is not None and numbers.min() < least:
        raise ValueError(f"{name}: {numbers.min()} is below {least}")
    if len(numbers) and beyond is not None and numbers.max() >= beyond:
        raise ValueError(f"{name}: {numbers.max()} is beyond the table's {beyond} rows")
    return np.require(numbers, requirements=["C", "W", "A"])


@compiled(simd)
def _train_windows(words, reach, negatives, negative, inputs, outputs, hot, private, learning_rate):
    widest = max(1, reach.max()) if len(reach) else 1
    rows = _rows(words, hot, private, widest)
    context = np.zeros(2 * widest + 1, np.int64)  # the rows of the context words
    step = np.zeros((2 * widest + 1, 8), np.float32)  # of each context word, towards each target
    scratch = np.empty((2, SCORES), np.float32)
    signs = _target_signs(negative)
    halves = np.ones((2, SCORES), np.float32)
    halves[1, 8:] = 0  # an odd last context word has none beside it
    one, nought = splat_scores(np.float32(1)), splat_scores(np.float32(0))
    rate = splat_scores(np.float32(learning_rate))
    product, exponents = one, nought  # the product of all probabilities is product * 2 ** exponents
    total = nought  # their sum, which is NaN if one of them is
    loss, pairs = 0.0, 0
    begin = end = 0  # bounds of the current sentence
    for at in range(len(words)):
        if at + AHEAD < len(words):
            _prefetch_window(rows, negatives, negative, inputs, outputs, hot, private, at + AHEAD)
        if words[at] < 0:
            begin = at + 1
            continue
        if at >= end:
            end = _sentence_end(words, at)
        left, right = max(begin, at - reach[at]), min(end, at + 1 + reach[at])
        contexts = right - left - 1
        if contexts == 0:
            continue
        for k in range(widest):  # a constant number, so that no branch is mispredicted; the surplus is not read
            context[k] = rows[left + k]
        for k in range(widest):
            context[at - left + k] = rows[at + 1 + k]
        pairs += contexts
        centre = rows[at]
        noise = at * negative
        for tile in range(len(signs)):  # one, unless there are more than five negatives
            first = centre
            if tile > 0:
                first = _row(negatives[noise], hot, private)
                noise += 1
            targets = (
                first,
                _row(negatives[noise], hot, private),
                _row(negatives[noise + 1], hot, private),
                _row(negatives[noise + 2], hot, private),
                _row(negatives[noise + 3], hot, private),
                _row(negatives[noise + 4], hot, private),
            )
            noise += TARGETS - 1
            sign = load_scores(signs, tile, 0)
            if _clash(centre, targets, tile):
                for lane in range(SCORES):
                    scratch[0, lane] = signs[tile, lane]
                for k in range(TARGETS):
                    if targets[k] == centre and k + tile > 0:
                        scratch[0, k] = scratch[0, k + 8] = 0
                sign = load_scores(scratch, 0, 0)
            for c in range(0, contexts, 2):
                sign = multiply(sign, load_scores(halves, c + 1 == contexts, 0))
                # probability of the truth: sigmoid(score) or sigmoid(-score); 1 in a lane without a word
                score = _score_two(inputs, context[c], context[c + 1], outputs, targets)
                odds = multiply(multiply(sign, sign), exp(multiply(subtract(nought, sign), score)))
                probability = divide(one, add(one, odds))
                store(step, c, 0, multiply(multiply(sign, rate), subtract(one, probability)))
                total = add(total, probability)
                product = multiply(product, probability)
                exponents = add(exponents, exponent(product))
                product = mantissa(product)
            _update(inputs, context, contexts, outputs, targets, step)
        if at % 4096 == 0:  # a float32 counts exponents exactly only up to 2^24
            loss += _minus_log(product, exponents, total, scratch)
            product, exponents = one, nought
    return loss + _minus_log(product, exponents, total, scratch), pairs


@compiled(simd)
def _exchange(table, hot, private, before):
    for row in range(hot):
        for column in range(0, table.shape[1], LANES):
            mine = load(table, row + private, column)
            now = add(load(table, row, column), subtract(mine, load(before, row, column)))
            store(table, row, column, now)
            store(table, row + private, column, now)
            store(before, row, column, now)
