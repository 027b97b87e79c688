"""Affinities have the closed forms of their source, and the chosen sources are the ones that a toy case must have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmssl.evaluation.downstream import affinity


def drawn(*strengths: float, examples: int = 4000, seed: int = 0) -> np.ndarray:
    """(sources, examples): losses of sources that win against each other in the ratio of their strengths, as in the
    model of Bradley and Terry: exponential variables with these rates."""
    return np.random.default_rng(seed).exponential(1 / np.array(strengths)[:, None], (len(strengths), examples))


def test_shares_of_wins_add_up_to_one_and_ties_count_half():
    losses = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 5.0]])
    assert affinity.win_shares(losses).tolist() == [[0.5, 0.625], [0.375, 0.5]]


def test_the_affinity_of_two_sources_is_their_share_of_wins():
    losses = drawn(3.0, 1.0)
    share = affinity.win_shares(losses)[0, 1]
    assert share == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(affinity.affinity(losses), [share, 1 - share], rtol=1e-9)


def test_where_win_ratios_are_those_of_strengths_the_affinities_are_the_strengths():
    found = affinity.affinity(drawn(4.0, 2.0, 1.0, 1.0, examples=200_000))
    np.testing.assert_allclose(found, [0.5, 0.25, 0.125, 0.125], rtol=0.02)


def test_a_source_that_always_wins_has_a_finite_affinity():
    found = affinity.affinity(np.array([[0.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_allclose(found, [0.999, 0.001])


def test_affinities_do_not_depend_on_the_scale_of_a_task():
    losses = drawn(4.0, 2.0, 1.0)
    np.testing.assert_allclose(affinity.affinity(losses), affinity.affinity(1000 * losses + 7))


# the first source is best on tasks 0 and 1, the second on 2 and 3; the third is nearly as good everywhere
TOY = [drawn(8.0, 1.0, 6.0), drawn(8.0, 1.0, 6.0), drawn(1.0, 8.0, 6.0), drawn(1.0, 8.0, 6.0)]


def test_one_source_is_the_one_that_helps_all_and_two_are_the_specialists():
    matrix = np.stack([affinity.affinity(losses) for losses in TOY], axis=1)
    np.testing.assert_allclose(matrix[:, 0], np.array([8, 1, 6]) / 15, atol=0.03)
    assert affinity.best_sources(matrix, 1) == ([2], [2] * 4)
    assert affinity.best_sources(matrix, 2) == ([0, 1], [0, 0, 1, 1])
    assert affinity.best_sources(matrix, 3) == ([0, 1], [0, 0, 1, 1])  # a third source would help no task


def test_the_choice_is_the_best_of_all_subsets():
    matrix = np.random.default_rng(0).dirichlet(np.ones(6), 5).T
    for budget in (1, 2, 3):
        found, of_target = affinity.best_sources(matrix, budget)
        best = max(matrix[list(each)].max(0).sum() for each in itertools.combinations(range(6), budget))
        assert len(found) <= budget and matrix[of_target, range(5)].sum() == pytest.approx(best)


def test_a_study_chooses_on_one_half_and_reports_the_other():
    losses = [np.stack([each, each[:, ::-1]], axis=1) for each in TOY]  # (sources, seeds, examples)
    half = [np.random.default_rng(0).permutation(each.shape[2]) for each in losses]
    for each, rows in zip(losses, half, strict=True):
        each[..., rows[len(rows) // 2 :]] += 100  # what is added to the other half changes no affinity
    untrained = [each[0] + 1 for each in losses]
    found, plain = (affinity.study(each, untrained, 2) for each in (losses, [each % 100 for each in losses]))
    np.testing.assert_array_equal(found.affinities, plain.affinities)
    assert found.choices[1].sources == [0, 1] and found.choices[1].per_seed == [[0, 1], [0, 1]]
    assert found.choices[1].loss == pytest.approx(100.125, abs=0.02)
    assert found.references["the best of each task"] == pytest.approx(found.choices[1].loss)
    assert found.choices[1].loss < found.references["the average source"]


def test_similar_rows_become_neighbours():
    rows = np.array([[0.0, 0.0], [9.0, 9.0], [0.1, 0.0], [9.1, 9.0]])
    found = affinity.order(rows)
    assert {frozenset(found[:2]), frozenset(found[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
