"""The VAE: divergence and likelihoods against closed forms and sums; a posterior that collapses, and is named."""

from __future__ import annotations

import math

import pytest
import torch
from tiny.simclr import batch
from tiny.vae import method
from torch.distributions import Normal, kl_divergence

from mmssl.methods.vae import VAE, discretised_logistic, kl_to_normal
from mmssl.training.monitor import FailureWatch


def test_the_divergence_of_the_prior_from_itself_is_0_and_of_others_that_of_torch():
    assert torch.equal(kl_to_normal(torch.zeros(2, 5), torch.zeros(2, 5)), torch.zeros(2))
    mean, log_variance = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_to_normal(mean, log_variance), expected)


@pytest.mark.parametrize("scale", [0.01, 0.1, 3.0])
def test_the_probabilities_of_the_256_values_sum_to_1(scale):
    values = torch.arange(256)[:, None] / 255
    mean = torch.tensor([0.0, 0.3, 1.0])
    total = discretised_logistic(values, mean, torch.tensor(scale)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(3), atol=1e-4, rtol=0)


def test_the_probability_of_a_value_is_the_mass_of_its_bin():
    value, mean, scale = 100 / 255, 0.35, 0.05
    upper, lower = (1 / (1 + math.exp(-(value + side * 0.5 / 255 - mean) / scale)) for side in (1, -1))
    found = discretised_logistic(torch.tensor(value), torch.tensor(mean), torch.tensor(scale)).item()
    assert found == pytest.approx(math.log(upper - lower), abs=1e-4)


def test_values_far_from_the_mean_have_finite_gradients():
    mean = torch.full((256,), 0.5, requires_grad=True)
    discretised_logistic(torch.arange(256) / 255, mean, torch.tensor(1e-3)).sum().backward()
    assert mean.grad.isfinite().all() and mean.grad[10] < 0 < mean.grad[245]


def test_a_decoder_that_knows_nothing_needs_8_bits_and_1_bit():
    # very wide bins: each of the 256 values alike, apart from the two ends
    wide = discretised_logistic(torch.arange(1, 255) / 255, torch.tensor(0.5), torch.tensor(100.0))
    torch.testing.assert_close(wide, wide.mean().expand(254), atol=1e-3, rtol=0)
    one, given = method(likelihood="bernoulli").eval(), batch(6)
    values = one.values(one.views.whole(given["pixel_values"]))
    bits = -one.log_likelihood(values, torch.zeros_like(values)) / (values[0].numel() * math.log(2))
    torch.testing.assert_close(bits, torch.ones(6))


@pytest.mark.parametrize("likelihood", ["logistic", "bernoulli"])
def test_the_loss_is_the_bound_and_beta_weighs_its_divergence(likelihood):
    one, given = method(likelihood=likelihood).eval(), batch(6)
    plain, bits = one(**given), 768 * math.log(2)
    assert plain.loss.item() == pytest.approx(plain.metrics["bits_per_dim"].item(), rel=1e-6)
    one.beta = 5.0
    heavy = one(**given)
    assert heavy.metrics["bits_per_dim"] == plain.metrics["bits_per_dim"]
    added = 4 * plain.metrics["kl"].item() / bits
    assert (heavy.loss - plain.loss).item() == pytest.approx(added, abs=1e-5)


def test_the_sample_is_a_function_of_the_key_and_spreads_with_the_variance():
    one, given = method().eval(), batch(6)
    assert torch.equal(one(**given).loss, one(**given).loss)
    assert not torch.equal(one(**given | {"key": given["key"] + 1}).loss, one(**given).loss)


def test_the_error_of_evaluation_is_that_of_the_mean_code():
    one, given = method().eval(), batch(4)
    pixels = one.views.whole(given["pixel_values"])
    mean, _ = one.encode(pixels)
    expected = one.errors(one.views.normalised(one.decoder(mean).sigmoid()), pixels, given["key"]).mean()
    torch.testing.assert_close(one(**given).metrics["squared_error"], expected)


def test_values_are_those_of_the_8_bit_image():
    one, given = method().eval(), batch(6)
    values = one.values(one.views.whole(given["pixel_values"]))
    assert torch.equal((255 * values).round().to(torch.uint8), given["pixel_values"])
    torch.testing.assert_close(one.views.normalised(values), one.views.whole(given["pixel_values"]))


def test_the_figure_has_reconstructions_samples_and_what_lies_between():
    one, given = method().eval(), batch(5)
    with torch.no_grad():
        columns = one.shown(given["pixel_values"], given["key"])
        other = one.shown(given["pixel_values"].flip(0), given["key"])
    assert all(
        images.shape == (5, 3, 16, 16) and images.min() >= 0 and images.max() <= 1 for images in columns.values()
    )
    torch.testing.assert_close(columns["this"], columns["reconstructed"])
    torch.testing.assert_close(columns["the next"], columns["reconstructed"].roll(-1, 0))
    assert torch.equal(columns["samples"], other["samples"]) and columns["samples"].std(0).max() > 0


def failures(one: VAE, steps: int = 300) -> list[str]:
    optimizer, watch, said = torch.optim.Adam(one.parameters(), 3e-3), FailureWatch(), []
    one.train()
    for step in range(steps):
        output = one(**batch(8))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        said += watch.look([{name: value.item() for name, value in output.metrics.items()}], step / steps)
    return said


def test_with_a_large_beta_the_posterior_collapses_and_the_monitor_says_so():
    (sentence,) = failures(method(beta=200.0))
    assert "posterior collapse" in sentence and "--beta too high" in sentence


def test_with_a_beta_of_1_it_does_not_collapse():
    assert not failures(method())
