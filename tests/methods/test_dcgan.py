"""DCGAN: losses against closed forms; a discriminator that wins and a generator that collapses are named."""

from __future__ import annotations

import math

import pytest
import torch
from device import accelerator
from tiny.dcgan import method
from tiny.simclr import batch

from mmssl.methods.dcgan import DCGAN
from mmssl.models.adversarial import discriminator_loss, generator_loss, spread, translated
from mmssl.training import steps
from mmssl.training.monitor import FailureWatch


@pytest.mark.parametrize(("real", "fake"), [(0.5, 0.5), (0.9, 0.1), (0.2, 0.7)])
def test_the_losses_are_those_of_the_probabilities(real, fake):
    logits = torch.logit(torch.tensor([[real] * 3, [fake] * 3]))
    assert discriminator_loss(*logits).item() == pytest.approx(-math.log(real) - math.log(1 - fake), rel=1e-5)
    assert generator_loss(logits[1]).item() == pytest.approx(-math.log(fake), rel=1e-5)


def test_at_one_half_the_discriminator_has_log_4_and_the_generator_log_2():
    one = method()
    torch.nn.init.zeros_(one.discriminator.head.weight)
    torch.nn.init.zeros_(one.discriminator.head.bias)
    assert one.eval()(**batch()).trivial_loss == pytest.approx(math.log(4))
    output = one.train()(**batch())
    # not in training: perfect samples have log 4, too, and the run would be said to have learned nothing
    assert output.loss.item() == pytest.approx(math.log(4)) and output.trivial_loss is None
    assert one(**batch(), phase=1).loss.item() == pytest.approx(math.log(2))


def test_the_generator_still_learns_where_the_discriminator_is_sure():
    logit = torch.tensor([-10.0], requires_grad=True)
    generator_loss(logit).backward()
    assert logit.grad.item() == pytest.approx(-1, abs=1e-3)  # log(1 - D) would give -4.5e-5


def test_the_discriminator_s_loss_gives_the_generator_no_gradient():
    one = method()
    one(**batch()).loss.backward()
    assert all(p.grad is None for p in one.generator.parameters())
    assert all(p.grad is not None for p in one.discriminator.head.parameters())


def test_noise_is_a_function_of_key_and_phase():
    noise, key = method().generator.noise, batch()["key"]
    assert torch.equal(noise(key)[2:4], noise(key[2:4])) and noise(key).shape == (6, 8)
    assert not torch.isin(noise(key, 1), noise(key, 0)).any()


def test_generated_images_are_possible_images():
    generator = method().generator
    unit = generator(100 * generator.noise(batch()["key"]))
    assert unit.shape == (6, 3, 16, 16) and unit.min() >= 0 and unit.max() <= 1


def test_shifts_are_of_whole_pixels_and_repeat_the_border():
    places = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
    pictures, key, found = torch.cat([places, places[:1]]).expand(200, 3, 8, 8), torch.arange(200), set()
    for row, column, _ in translated(pictures, key, 0, 0.25):
        down, right = int(row[4, 4]) - 4, int(column[4, 4]) - 4
        found.add((down, right))
        assert torch.equal(row[:, 0], (torch.arange(8.0) + down).clamp(0, 7)) and (row == row[:, :1]).all()
        assert torch.equal(column[0], (torch.arange(8.0) + right).clamp(0, 7)) and (column == column[:1]).all()
    assert found == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    assert torch.equal(translated(pictures, key, 0, 0.0), pictures)


def test_equal_images_have_no_spread_and_two_opposite_ones_that_of_their_difference():
    assert spread(torch.ones(4, 3, 2, 2)) == 0
    assert spread(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)).item() == pytest.approx(math.sqrt(2))


def test_the_figure_shows_the_same_noise_beside_any_images():
    one, given = method().eval(), batch(5)
    with torch.no_grad():
        columns, other = (
            one.shown(pixels, given["key"]) for pixels in (given["pixel_values"], 0 * given["pixel_values"])
        )
    assert len(columns) == 9 and all(images.shape == (5, 3, 16, 16) for images in columns.values())
    assert torch.equal(columns["generated"], other["generated"]) and not torch.equal(columns["real"], other["real"])


def failures(rates: tuple[float, float], translation: float = 0.125, count: int = 300) -> list[str]:
    """What is said of a run with these learning rates of discriminator and generator."""
    one, watch, said = method(), FailureWatch(), []
    one.translation = translation
    players = [
        torch.optim.Adam(p.parameters(), rate, (0.5, 0.999)) for p, rate in zip(one.players(), rates, strict=True)
    ]
    given, one_process = batch(12), accelerator()
    for step in range(count):
        one.train()
        rows = given | {"key": given["key"] + step}
        metrics = steps.alternating(one, [rows], players, one_process, 1.0).metrics
        said += watch.look([{name: value.item() for name, value in metrics.items()}], step / count)
    return said


def test_against_a_generator_that_hardly_learns_the_discriminator_wins_and_the_monitor_says_so():
    (sentence,) = failures((3e-3, 1e-6))
    assert "the discriminator has won" in sentence


def test_against_a_discriminator_that_hardly_learns_the_generator_collapses_and_the_monitor_says_so():
    (sentence,) = failures((1e-5, 1e-2), translation=0.0)
    assert "mode collapse" in sentence


def test_with_rates_in_balance_neither_happens():
    assert not failures((5e-4, 2e-3))


def test_what_is_exported_is_the_trunk_and_a_further_run_takes_over_both_players(tmp_path):
    one = method()
    one.save_pretrained(tmp_path)
    again = DCGAN(one.exported(), one.views, (16, 16), 8, 16)
    again.continue_from(str(tmp_path))
    for part in ("discriminator", "generator"):
        theirs = getattr(one, part).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in getattr(again, part).state_dict().items())
