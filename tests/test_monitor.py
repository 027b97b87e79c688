"""The collapse watch speaks when it is true, and only then."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.training.monitor import (
    FAILING,
    FAILURES,
    PATIENCE,
    CollapseWatch,
    FailureWatch,
    effective_rank,
    no_better_than_trivial,
    normalised_std,
)

torch.manual_seed(0)
SPREAD = torch.randn(128, 32)
ALIKE = torch.ones(128, 32) + 1e-3 * torch.randn(128, 32)
ONE_LINE = torch.randn(128, 1) @ torch.randn(1, 32) + 1e-4 * torch.randn(128, 32)


@pytest.mark.parametrize("rank", [1, 5, 32])
def test_effective_rank_of_equally_strong_directions_is_their_number(rank):
    basis = torch.linalg.qr(torch.randn(128, 33) - torch.randn(128, 33).mean(0))[0]
    basis = torch.linalg.qr(basis - basis.mean(0))[0][:, :rank]  # orthogonal, and of mean zero
    features = basis @ torch.linalg.qr(torch.randn(32, 32))[0][:rank]
    assert effective_rank(features) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_does_not_count_a_constant_offset():
    assert effective_rank(ONE_LINE + 100) == pytest.approx(effective_rank(ONE_LINE), rel=0.05)


def test_normalised_std_is_one_on_the_sphere_and_zero_at_a_point():
    assert normalised_std(torch.randn(4096, 64)) == pytest.approx(1, abs=0.02)
    assert normalised_std(torch.ones(10, 64)) == pytest.approx(0, abs=1e-6)


def said(windows: list[torch.Tensor], share_done: float = 0.5) -> list[str]:
    watch = CollapseWatch()
    sentences = [watch.look(features, share_done)[1] for features in windows]
    return [sentence for sentence in sentences if sentence]


@pytest.mark.parametrize("features, words", [(ALIKE, "have collapsed"), (ONE_LINE, "collapsing: effective rank 1.")])
def test_lasting_collapse_is_said_once_with_likely_causes(features, words):
    sentences = said([features] * 3 * PATIENCE)
    assert len(sentences) == 1 and words in sentences[0] and "Likely causes: " in sentences[0]


def test_spread_features_are_not_called_collapsed():
    assert said([SPREAD] * 10) == []


def test_one_odd_window_is_not_called_collapse():
    assert said([*[ALIKE] * (PATIENCE - 1), SPREAD] * 3) == []


def test_features_alike_at_the_beginning_of_a_run_are_not_called_collapse():
    assert said([ALIKE] * 10, share_done=0.1) == []


def test_features_of_two_samples_have_no_spread_to_speak_of():
    assert CollapseWatch().look(ALIKE[:2], 0.5) == ({}, None)


def test_loss_within_one_per_cent_of_trivial_is_no_better():
    assert no_better_than_trivial(math.log(64), math.log(64))
    assert no_better_than_trivial(0.995 * math.log(64), math.log(64))
    assert no_better_than_trivial(0.9 * math.log(64), math.log(64)) is None


@pytest.mark.parametrize("name", FAILURES)
def test_a_metric_that_shows_a_failure_is_named_once_after_enough_steps_in_a_row(name):
    watch, failing, healthy = FailureWatch(), [{name: FAILURES[name][0] / 2}] * 50, [{name: FAILURES[name][0]}]
    windows = FAILING // 50
    assert not any(watch.look(failing, progress=0.05) for _ in range(2 * windows))  # at the start
    assert not any(watch.look(rows, 0.5) for rows in [*[failing] * (windows - 1), healthy] * 3)
    said = [watch.look(failing, 0.5) for _ in range(3 * windows)]
    (sentence,) = said.pop(windows - 1)
    assert not any(said) and f"for {FAILING} steps" in sentence and "Likely cause" in sentence
    assert f"{FAILURES[name][0] / 2:.3f}" in sentence


def test_other_metrics_show_no_failure():
    assert not FailureWatch().look([{"loss": 0.0}] * 2 * FAILING, 0.5)
