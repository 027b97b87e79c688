"""VICReg: its terms against closed forms; collapse without the variance."""

from __future__ import annotations

import collapse
import numpy as np
import pytest
import torch
from tiny.simclr import batch
from tiny.vicreg import method

from mmssl.methods.vicreg import covariance, variance


def test_unit_variance_no_covariance_and_equal_views_have_no_loss():
    corners = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
    assert variance(corners) == 0 and covariance(corners) == 0
    assert method().loss(corners, corners).loss == 0


def test_one_embedding_for_all_has_the_trivial_loss():
    output = method().loss(torch.ones(6, 8), torch.ones(6, 8))
    assert output.loss.item() == pytest.approx(49.5) == output.trivial_loss


def test_the_hinge_looks_at_each_dimension_alone():
    z = torch.tensor([[-0.5, -9.0], [0.5, 9.0], [0.0, 0.0]])  # deviations 0.5 and 9
    assert variance(z).item() == pytest.approx((1 - (0.25 + 1e-4) ** 0.5) / 2)


def test_the_covariance_is_that_of_numpy():
    z = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) @ torch.ones(4, 4).tril()
    matrix = np.cov(z.T.cpu().numpy())
    expected = (matrix**2).sum() - (np.diag(matrix) ** 2).sum()
    assert covariance(z).item() == pytest.approx(expected / 4, rel=1e-4)


def test_the_loss_is_the_weighted_sum_of_the_terms():
    output = method().train()(**batch())
    weights = {"invariance": 25, "variance": 25, "covariance": 1}
    assert output.loss.item() == pytest.approx(sum(w * output.metrics[name].item() for name, w in weights.items()))


def test_without_the_variance_it_collapses_and_the_monitor_says_so():
    assert collapse.said(method(collapse.encoder, norm="layer")) is None
    assert "collaps" in collapse.said(method(collapse.encoder, norm="layer", variance=0.0))
