"""Super-resolution: what the encoder sees, and PSNR and SSIM against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from tiny.simclr import batch
from tiny.super_resolution import method, perceptual

from mmssl.errors import BadInput
from mmssl.methods.super_resolution import psnr, ssim


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_an_error_of_a_tenth_is_20_dB():
    true = images() * 0.9
    torch.testing.assert_close(psnr(true + 0.1, true), torch.full((2,), 20.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(psnr(true, true), torch.full((2,), 100.0))


def test_ssim_is_1_for_equal_images_and_0_for_unrelated_ones():
    torch.testing.assert_close(ssim(images(), images()), torch.ones(2))
    assert ssim(images(0), images(1)).abs().max() < 0.2
    assert ssim(images(), 1 - images()).max() < 0


def test_ssim_of_two_constant_images_is_that_of_their_brightness():
    a, b, c1 = 0.2, 0.6, 0.01**2
    found = ssim(torch.full((1, 3, 12, 12), a), torch.full((1, 3, 12, 12), b)).item()
    assert found == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-3)


def test_ssim_of_one_window_is_the_formula():
    """Independently: at one place, from weighted means in plain Python."""
    x, y = images(0)[:1, :, :11, :11], images(1)[:1, :, :11, :11]
    weight = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)]
    total, each = sum(map(sum, weight)), []
    for p, q in zip(x[0].tolist(), y[0].tolist(), strict=True):

        def mean(f, p=p, q=q):
            return sum(weight[i][j] * f(p[i][j], q[i][j]) for i in range(11) for j in range(11)) / total

        a, b = mean(lambda u, v: u), mean(lambda u, v: v)
        vx, vy, cov = (
            mean(lambda u, v: u * u) - a * a,
            mean(lambda u, v: v * v) - b * b,
            mean(lambda u, v: u * v) - a * b,
        )
        each.append((2 * a * b + 1e-4) * (2 * cov + 9e-4) / ((a * a + b * b + 1e-4) * (vx + vy + 9e-4)))
    assert ssim(x, y).item() == pytest.approx(sum(each) / 3, rel=1e-3)


def test_the_encoder_sees_nothing_finer_than_the_small_image():
    one, given = method(), batch(4)
    pixels = one.views.whole(given["pixel_values"])
    seen = one.given(pixels, given["key"])
    assert seen.shape == pixels.shape and one.small == (4, 4)
    # shifting brightness keeps its blur: interpolation is linear, and a constant stays
    torch.testing.assert_close(one.given(2 * pixels + 1, given["key"]), 2 * seen + 1, atol=1e-4, rtol=1e-4)
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 3, 16, 16)  # of one pixel
    assert one.given(stripes, given["key"]).abs().max() < 0.5


def test_a_decoder_that_adds_nothing_leaves_bicubic_interpolation_and_its_loss():
    one, given = method(adversarial=0.0).eval(), batch(4)
    torch.nn.init.zeros_(one.decoder.layers[-1].weight)
    torch.nn.init.zeros_(one.decoder.layers[-1].bias)
    with torch.no_grad():
        output = one(**given)
        columns = one.shown(given["pixel_values"], given["key"])
    assert output.loss == output.trivial_loss and torch.equal(columns["restored"], columns["bicubic"])
    assert set(output.metrics) == {"squared_error", "generator_loss", "psnr", "ssim"}


def test_the_discriminator_s_loss_gives_encoder_and_decoder_no_gradient():
    one = method()
    one(**batch(4), phase=0).loss.backward()
    discriminator, others = one.players()
    assert all(p.grad is None for p in others.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_a_factor_that_leaves_nothing_is_refused():
    with pytest.raises(BadInput, match="--factor 16 makes images of 16 x 16 pixels too small"):
        method(factor=16)


def test_the_error_on_features_is_added_and_its_encoder_is_not_exported():
    plain, both, given = method(), method(perceptual=perceptual(), weight=0.5), batch(4)
    both.load_state_dict(plain.state_dict(), strict=False)
    without, found = plain(**given), both(**given)
    error = found.metrics["feature_error"]
    torch.testing.assert_close(found.loss, without.loss + 0.5 * error)
    assert error > 0 and "feature_error" not in without.metrics
    assert both._heads().keys() == plain._heads().keys()
