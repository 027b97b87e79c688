"""Autoencoders: penalties and noise against closed forms; a linear one finds the principal components."""

from __future__ import annotations

import math
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from tiny.autoencoder import bit, linear, method, whole
from tiny.simclr import batch
from transformers import AutoModel

from mmssl.data.images import pictures
from mmssl.errors import BadInput
from mmssl.evaluation.restoration import Restoration, projection
from mmssl.methods import autoencoder
from mmssl.methods.autoencoder import Autoencoder, bernoulli_kl, sparseness
from mmssl.models import remote_code
from mmssl.models.linear_image import LinearImageConfig, LinearImageModel


@pytest.mark.parametrize("activation", [0.05, 0.5, 0.9])
def test_the_penalty_is_the_divergence_of_two_coins_and_0_at_rho(activation):
    rho = 0.05
    expected = rho * math.log(rho / activation) + (1 - rho) * math.log((1 - rho) / (1 - activation))
    found = bernoulli_kl(rho, torch.full((3,), activation)).item()
    assert found == pytest.approx(3 * expected, abs=1e-5) and (found < 1e-5) == (activation == rho)
    assert bernoulli_kl(rho, torch.tensor([0.0, 1.0])).isfinite()


def test_the_loss_is_the_squared_error_and_the_trivial_loss_that_of_the_mean_image():
    one, given = method().eval(), batch(6)
    pixels = one.views.whole(given["pixel_values"])
    output = one(**given)
    error = (one.reconstructed(pixels, given["key"]) - pixels).square().mean()
    torch.testing.assert_close(output.loss, error)
    torch.testing.assert_close(output.trivial_loss, (pixels - pixels.mean(0)).square().mean())


def test_half_of_the_pixels_are_hidden_in_all_channels_and_the_target_stays_clean():
    one, given = method(bit, "denoising", noise=0.5).eval(), batch(6)
    pixels = one.views.whole(given["pixel_values"])
    seen = one.given(pixels, given["key"])
    hidden = (seen == 0).all(1)
    assert hidden.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(seen.movedim(1, -1)[~hidden], pixels.movedim(1, -1)[~hidden])
    assert torch.equal(seen[2:4], one.given(pixels[2:4], given["key"][2:4]))
    assert torch.equal(one.embed(**given)["target"], pixels)


def test_gaussian_noise_has_the_deviation_that_was_asked_for():
    one, given = method(bit, "denoising", corruption="gaussian", noise=0.3), batch(6)
    pixels = one.views.whole(given["pixel_values"])
    noise = one.given(pixels, given["key"]) - pixels
    assert noise.std().item() == pytest.approx(0.3, rel=0.03) and abs(noise.mean().item()) < 0.01


class Shrink(torch.nn.Module):
    """The best denoiser of data from N(0, 1): the mean of the clean value given the noisy one."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.factor = 1 / (1 + sigma**2)

    def forward(self, x):
        return self.factor * x


def test_the_best_denoiser_moves_along_the_score_of_the_noisy_data():
    """(restored - noisy) / sigma^2 is the gradient of log density (Vincent 2011, equation 12; Alain & Bengio 2014)."""
    sigma, noisy = 0.1, torch.linspace(-2, 2, 9)
    score = -noisy / (1 + sigma**2)
    torch.testing.assert_close((Shrink(sigma)(noisy) - noisy) / sigma**2, score)
    # and no other factor restores with a smaller error
    clean = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    given = clean + sigma * torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    errors = [(scale * given - clean).square().mean() for scale in (0.97, Shrink(sigma).factor, 1.01)]
    assert errors[1] < min(errors[0], errors[2])


def digits() -> torch.Tensor:
    """(1797, 3, 8, 8) uint8, grey."""
    pixels = torch.from_numpy(load_digits().images).mul(255 / 16).round().to(torch.uint8)
    return pixels[:, None].expand(-1, 3, -1, -1).contiguous()


def test_a_linear_one_finds_the_subspace_and_the_error_of_the_principal_components():
    torch.manual_seed(0)
    dim, pixels, steps = 4, digits(), 500
    encoder = LinearImageModel(LinearImageConfig(image_size=8, hidden_size=dim))
    one = Autoencoder(encoder, whole(), (8, 8), "linear", dim).eval()
    images = one.views.whole(pixels)
    one.start_at_mean(images)
    key = torch.zeros(len(pixels), dtype=torch.long)
    optimizer = torch.optim.Adam(one.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.015 * (1 + math.cos(math.pi * step / steps))
        one.errors(one.reconstructed(images, key), images, key).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    table = images.flatten(1)
    components = torch.linalg.svd(table - table.mean(0), full_matrices=False)[2][:dim]
    basis = torch.linalg.qr(one.decoder[0].weight.detach()).Q  # (pixels, dim)
    cosines = torch.linalg.svdvals(components @ basis)
    assert math.degrees(math.acos(min(1.0, cosines.min().item()))) < 1
    error = (projection(images, dim)(images) - images).square().mean().item()
    assert one(pixel_values=pixels, key=key).loss.item() == pytest.approx(error, rel=1e-3)


def test_a_linear_one_is_exported_with_its_code(tmp_path):
    one, given = method(linear, "linear"), batch(4)
    one.save_pretrained(tmp_path)
    remote_code.add_own(tmp_path)
    assert (tmp_path / "linear_image.py").is_file()
    pixels = one.views.whole(given["pixel_values"])
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    code = again(pixels).pooler_output
    torch.testing.assert_close(code, one.encoder(pixels).pooler_output)
    # linear: the code of a mean is the mean of the codes
    torch.testing.assert_close(again(pixels.mean(0, keepdim=True)).pooler_output[0], code.mean(0))


def test_sparseness_is_1_for_one_active_number_and_does_not_change_with_the_scale():
    codes = torch.tensor([[0.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 0.0, -2.0]])
    torch.testing.assert_close(sparseness(codes), torch.tensor([1.0, 2.0, 5 / 3]))
    torch.testing.assert_close(sparseness(0.01 * codes), sparseness(codes))


def test_a_sparse_code_becomes_sparse():
    torch.manual_seed(0)
    fractions = []
    for weight in (0.0, 1.0):
        one, given = method(bit, "sparse", weight=weight), batch(16)
        optimizer = torch.optim.Adam(one.parameters(), 3e-3)
        for _ in range(60):
            output = one(**given)
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        fractions.append(output.metrics["active_fraction"].item())
    assert fractions[1] < 0.5 * fractions[0]


def some_pictures(count: int, seed: int) -> pictures.Pictures:
    held = object.__new__(pictures.Pictures)
    held.pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).byte()
    held.rows, held.seed, held.epoch = torch.arange(count), 0, 0
    return held


def test_more_components_have_a_smaller_error_than_the_mean_image_and_the_input_counts_where_it_is_corrupted():
    train, held_out = some_pictures(40, 0), some_pictures(12, 1)
    train.pixels[:, :, 8:] = held_out.pixels[:, :, 8:] = train.pixels[:1, :, :8]  # random above, constant below
    processor = None
    errors = []
    for components in (1, 39):
        evaluation = Restoration(train, held_out, processor, 6, components)
        columns = evaluation.baselines(method().eval())
        assert list(columns) == ["input ignored", "mean image", "PCA"]
        errors.append(columns["PCA"]["squared_error"])
        pixels, mean = (method().views.whole(each.pixels) for each in (held_out, train))
        expected = (pixels - mean.mean(0)).square().mean().item()
        assert columns["mean image"]["squared_error"] == pytest.approx(expected, rel=1e-4)
    one = method(bit, "denoising", corruption="gaussian", noise=0.2).eval()
    columns = Restoration(train, held_out, processor, 6).baselines(one)
    assert columns["input as it is"]["squared_error"] == pytest.approx(0.04, rel=0.05) and "PCA" not in columns


def test_components_restore_what_lies_in_their_span():
    basis = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    images = (torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) @ basis).view(50, 3, 2, 2)
    errors = [(projection(images, k)(images) - images).square().mean().item() for k in (1, 2, 3, 100)]
    assert all(more < less for less, more in pairwise(errors[:3])) and max(errors[2:]) < 1e-10


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"kind": "linear", "encoder": "vit-micro"}, "--encoder has no effect with --kind linear"),
        ({"rho": 0.1}, "--rho has no effect with --kind undercomplete"),
        ({"kind": "sparse", "noise": 0.1}, "--noise has no effect with --kind sparse"),
    ],
)
def test_flags_of_another_kind_are_refused(flags, said):
    recipe = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "autoencoder.py"))
    args = recipe["AutoencoderArgs"](**flags)
    with pytest.raises(BadInput, match=said):
        encoder, processor = autoencoder.build(args, 8)
        autoencoder.from_args(args, encoder, processor, whole(), some_pictures(3, 0))
