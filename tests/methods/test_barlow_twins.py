"""Barlow Twins: cross-correlation and loss against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny.barlow_twins import method
from tiny.simclr import batch

from mmssl.methods.barlow_twins import cross_correlation, redundancy


def normal(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_the_identity_has_no_loss():
    assert sum(redundancy(torch.eye(5), 0.1)) == 0


def test_equal_dimensions_are_redundant_and_one_embedding_for_all_has_the_trivial_loss():
    invariance, redundant = redundancy(torch.ones(5, 5), 0.1)
    assert invariance == 0 and redundant.item() == pytest.approx(0.1 * 5 * 4)
    same = torch.ones(6, 5)
    assert sum(redundancy(cross_correlation(same, same), 0.1)) == 5 == method().loss(same, same).trivial_loss


def test_the_cross_correlation_is_that_of_numpy():
    first, second = normal(20, 4, 0), 3 * normal(20, 4, 1) + 5
    expected = np.corrcoef(first.T.cpu().numpy(), second.T.cpu().numpy())[:4, 4:]
    torch.testing.assert_close(cross_correlation(first, second).double(), torch.tensor(expected), atol=1e-4, rtol=0)


def test_the_terms_are_logged_and_sum_to_the_loss():
    output = method().train()(**batch())
    assert output.loss.item() == pytest.approx(sum(output.metrics.values()).item())
    assert output.features.shape == (6, 8) and not output.features.requires_grad
