"""LeJEPA: SIGReg against closed forms and numerical integration; its random directions; collapse without SIGReg."""

from __future__ import annotations

import cmath
import math

import collapse
import pytest
import torch
from scipy.integrate import quad
from tiny.lejepa import crops, method
from tiny.simclr import batch, vit

from mmssl.errors import BadInput
from mmssl.methods.lejepa import LeJEPA, directions, epps_pulley


def integrated(samples: list[float]) -> float:
    """The statistic by adaptive quadrature, one t at a time."""

    def integrand(t: float) -> float:
        mean = sum(cmath.exp(1j * t * x) for x in samples) / len(samples)
        return abs(mean - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2)

    return len(samples) * quad(integrand, -5, 5, limit=200)[0]


def test_the_statistic_is_its_integral():
    samples = 1.5 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 0.3
    expected = [integrated(column.tolist()) for column in samples.T]
    assert epps_pulley(samples).tolist() == pytest.approx(expected, rel=1e-3)


def test_the_statistic_has_the_closed_form_of_gaussian_kernels():
    """With the Gaussian window the integral over all t is a sum over pairs and over samples (Baringhaus and Henze
    1988, with beta = 1)."""
    x = torch.randn(30, generator=torch.Generator().manual_seed(1)).double()
    pairs = math.sqrt(2 * math.pi) * torch.exp(-((x[:, None] - x) ** 2) / 2).mean()
    alone = 2 * math.sqrt(math.pi) * torch.exp(-(x**2) / 4).mean()
    expected = 30 * (pairs - alone + math.sqrt(2 * math.pi / 3))
    assert epps_pulley(x[:, None].float()).item() == pytest.approx(expected.item(), rel=1e-3)


def test_standard_normal_samples_have_the_expected_statistic_at_any_number_of_them():
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))  # the integral of (1 - exp(-t^2)) exp(-t^2 / 2)
    for n in (50, 400):
        samples = torch.randn(n, 4000, generator=torch.Generator().manual_seed(n))
        assert epps_pulley(samples).mean().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_equal_samples_have_a_statistic_that_grows_with_their_number(shift):
    expected = math.sqrt(2 * math.pi) * (1 + 1 / math.sqrt(3)) - 2 * math.sqrt(math.pi) * math.exp(-(shift**2) / 4)
    for n in (10, 1000):
        assert epps_pulley(torch.full((n, 1), shift)).item() == pytest.approx(n * expected, rel=1e-3)


def test_directions_have_unit_length_no_preferred_axis_and_are_other_ones_for_each_seed():
    drawn = directions(torch.tensor(7), 6, 20_000)
    torch.testing.assert_close(drawn.norm(dim=0), torch.ones(20_000))
    torch.testing.assert_close(drawn @ drawn.T / 20_000, torch.eye(6) / 6, atol=0.01, rtol=0)
    assert torch.equal(drawn, directions(torch.tensor(7), 6, 20_000)) and drawn.mean(1).abs().max() < 0.01
    assert not torch.equal(drawn, directions(torch.tensor(8), 6, 20_000))


def test_the_distance_is_that_of_all_views_from_the_mean_of_the_global_ones():
    embeddings = torch.tensor([[[0.0], [2.0], [4.0], [1.0]]] * 2)  # the mean of the first two is 1
    output = method().loss(embeddings, torch.arange(2))
    assert output.metrics["prediction"].item() == pytest.approx((1 + 1 + 9 + 0) / 4)
    assert output.loss.item() == pytest.approx(0.95 * 11 / 4 + 0.05 * output.metrics["sigreg"].item())


def test_one_embedding_for_all_has_the_trivial_loss():
    output = method().loss(torch.zeros(6, 4, 8), torch.arange(6))
    assert output.loss.item() == pytest.approx(output.trivial_loss.item())
    assert output.trivial_loss.item() == pytest.approx(0.05 * integrated([0.0] * 6), rel=1e-3)


def test_every_view_carries_gradient_the_global_ones_included():
    embeddings = method().train().embed(**batch())["embeddings"].detach().requires_grad_()
    output = method().loss(embeddings, torch.arange(6))
    assert embeddings.shape == (6, 4, 8) and output.features.shape == (6, 8)
    (gradient,) = torch.autograd.grad(output.loss, embeddings)
    assert (gradient.abs().sum((0, 2)) > 0).all()


def test_a_number_of_global_views_that_cannot_be_is_refused():
    with pytest.raises(BadInput, match="global_views 5: there are 4 views"):
        LeJEPA(vit(), crops(), 5)


def test_without_sigreg_it_collapses_and_the_monitor_says_so():
    assert collapse.said(method(collapse.encoder, norm="layer")) is None
    assert "collaps" in collapse.said(method(collapse.encoder, norm="layer", weight=0.0))
