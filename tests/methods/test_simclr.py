"""NT-Xent against closed forms and a loop written out; several processes as one; what the views are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import Processes
from safetensors.torch import load_file, save_file
from small import arguments
from tiny.simclr import batch, method, resnet

from mmssl.distributed import rank, world_size
from mmssl.methods.simclr import nt_xent
from mmssl.training.start import start


def unit(n: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_equal_views_of_all_images_have_the_loss_of_chance():
    same = F.normalize(torch.ones(7, 4), dim=1)
    assert nt_xent(same, same, 0.5)[0].item() == pytest.approx(math.log(2 * 7 - 1))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_aligned_pairs_orthogonal_to_all_others_have_a_closed_form(temperature):
    loss, found = nt_xent(torch.eye(6), torch.eye(6), temperature)
    assert loss.item() == pytest.approx(math.log(1 + 10 * math.exp(-1 / temperature)), rel=1e-3)
    assert found == 1


def test_the_loss_is_that_of_equation_1_written_out():
    first, second = unit(4), unit(4, seed=1)
    z, total, right = torch.cat([first, second]), 0.0, 0
    for i in range(8):
        partner = (i + 4) % 8
        similar = {k: float(z[i] @ z[k]) / 0.3 for k in range(8) if k != i}
        total -= similar[partner] - math.log(sum(math.exp(value) for value in similar.values()))
        right += max(similar, key=similar.get) == partner
    loss, found = nt_xent(first, second, 0.3)
    assert loss.item() == pytest.approx(total / 8, rel=1e-5) and found.item() == right / 8


def test_the_two_views_are_treated_alike():
    first, second = unit(5), unit(5, seed=1)
    torch.testing.assert_close(nt_xent(first, second, 0.5), nt_xent(second, first, 0.5))


def gradient(rows: slice) -> dict[str, torch.Tensor]:
    """Of the loss with respect to the views, summed over processes and divided by their number."""
    views = [unit(8, seed=seed).requires_grad_() for seed in (1, 2)]
    loss, _ = nt_xent(views[0][rows], views[1][rows], 0.2)
    loss.backward()
    found = {"loss": loss.detach().clone()} | {str(i): view.grad for i, view in enumerate(views)}
    if world_size() > 1:
        for value in found.values():
            torch.distributed.all_reduce(value)
            value /= world_size()
    return found


def on_half_of_the_batch(place: Path) -> None:
    start(arguments(place))
    save_file(gradient(slice(4 * rank(), 4 * rank() + 4)), place / f"{rank()}.safetensors")


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    Processes(on_half_of_the_batch, tmp_path, log=tmp_path / "log.txt", world=2).succeed()
    whole = gradient(slice(None))
    assert whole["0"].abs().sum() > 0.1
    for i in (0, 1):
        torch.testing.assert_close(load_file(tmp_path / f"{i}.safetensors"), whole)


def test_the_two_views_of_an_image_differ_and_follow_from_its_key():
    one, given = method().train(), batch()
    rows = one.embed(**given)
    assert not torch.allclose(rows["first"], rows["second"], atol=1e-3)
    torch.testing.assert_close(rows["first"].norm(dim=1), torch.ones(6))
    part = one.embed(**{name: value[2:4] for name, value in given.items()})
    for name in ("first", "second", "features"):
        torch.testing.assert_close(part[name], rows[name][2:4], rtol=1e-4, atol=1e-5)
    others = one.embed(given["pixel_values"], given["key"] + 1)
    assert not torch.allclose(others["first"], rows["first"], atol=1e-3)


def test_the_output_is_beside_that_of_chance():
    output = method()(**batch())
    assert output.trivial_loss == pytest.approx(math.log(11)) and 0 <= output.metrics["partner_found"] <= 1
    assert output.features.shape == (6, 32) and not output.features.requires_grad


def test_a_lower_temperature_sharpens_the_comparison():
    given = batch()
    blunt, sharp = (method(temperature=t)(**given).loss.item() for t in (100.0, 0.05))
    assert blunt == pytest.approx(math.log(11), abs=0.01) and abs(sharp - math.log(11)) > 0.05


def test_the_heads_are_the_projection_alone(tmp_path):
    one, other = method(resnet), method(resnet)
    with torch.no_grad():
        one.projection[2].weight.fill_(0.25)
    one.save_pretrained(tmp_path)
    assert all(name.startswith("projection.") for name in one._heads())
    other.continue_from(str(tmp_path))
    assert (other.projection[2].weight == 0.25).all()
