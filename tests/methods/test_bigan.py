"""BiGAN: both pairs, exchanged labels, and an encoder that comes to invert the generator."""

from __future__ import annotations

import math

import pytest
import torch
from tiny.bigan import method
from tiny.simclr import batch

from mmssl.models.adversarial import discriminator_loss
from mmssl.training import optim


def test_at_one_half_both_players_have_log_4():
    one = method()
    torch.nn.init.zeros_(one.head[-1].weight)
    torch.nn.init.zeros_(one.head[-1].bias)
    for phase in (0, 1):
        torch.testing.assert_close(one(**batch(), phase=phase).loss, torch.tensor(math.log(4)))


def test_encoder_and_generator_have_the_discriminator_s_loss_with_the_labels_exchanged():
    real, fake = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    swapped = -(torch.sigmoid(fake).log() + (1 - torch.sigmoid(real)).log()).mean()
    torch.testing.assert_close(discriminator_loss(fake, real), swapped)


def test_each_player_s_loss_reaches_its_own_parameters_through_both_pairs():
    one = method()
    discriminator, others = one.players()
    one(**batch(), phase=0).loss.backward()
    assert all(p.grad is None for p in others.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())
    one(**batch(), phase=1).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in (one.code.weight, one.generator.project.weight))


def test_the_encoder_s_two_errors_move_the_encoder_and_not_the_generator():
    given, gradients = batch(), {}
    for weights in ((0.0, 0.0), (3.0, 0.0), (0.0, 3.0)):
        one = method(code_error=weights[0], image_error=weights[1])
        output = one(**given, phase=1)
        output.loss.backward()
        gradients[weights] = one.generator.project.weight.grad, one.code.weight.grad
        added = sum(3 * output.metrics[name] for name in ("code_error", "image_error") if name in output.metrics)
        torch.testing.assert_close(output.loss.detach(), output.metrics["generator_loss"] + added)
    paper = gradients.pop((0.0, 0.0))
    for generator, code in gradients.values():
        torch.testing.assert_close(generator, paper[0])
        assert not torch.allclose(code, paper[1])


def test_the_errors_are_those_of_the_codes_of_generated_and_of_the_images_of_encoded_ones():
    one, given = method(translation=0.0, code_error=1.0, image_error=1.0).eval(), batch(4)
    with torch.no_grad():
        found = one(**given, phase=1).metrics
        noise, real = one.generator.noise(given["key"], 1), one.views.whole(given["pixel_values"])
        code = one.encode(one.views.normalised(one.generator(noise)))[0]
        made = one.views.normalised(one.generator(one.encode(real)[0]))
    torch.testing.assert_close(found["code_error"], (code - noise).square().mean())
    torch.testing.assert_close(found["image_error"], (made - real).square().mean())


def test_the_discriminator_sees_the_code():
    one = method()
    images, codes = torch.zeros(4, 3, 16, 16), one.generator.noise(torch.arange(4))
    assert one.judge(images, codes).std() > 0 and one.judge(images, 0 * codes).std() == 0


def test_the_recovered_code_is_1_for_an_encoder_that_inverts_the_generator():
    one, given = method().eval(), batch(4)
    noise = one.generator.noise(given["key"])
    one.code = Constant(noise)
    with torch.no_grad():
        assert one(**given).metrics["code_recovered"].item() == pytest.approx(1)
        one.code = Constant(-noise)
        assert one(**given).metrics["code_recovered"].item() == pytest.approx(-1)


class Constant(torch.nn.Module):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.value


def test_the_generator_has_a_learning_rate_of_its_own():
    one = method()
    optimizer = optim.adamw(one.players()[1], 2e-4, weight_decay=0.01, rates={one.generator: 1e-3})
    optim.set_learning_rate([optimizer], 0.5)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == set(one.players()[1].parameters())
    assert {rates[p] for p in one.generator.parameters()} == {5e-4}
    assert {rates[p] for p in (*one.encoder.parameters(), *one.code.parameters())} == {1e-4}


def test_the_figure_shows_images_and_what_is_made_of_their_codes():
    one, given = method().eval(), batch(3)
    with torch.no_grad():
        columns = one.shown(given["pixel_values"], given["key"])
    assert list(columns)[:3] == ["real", "G(E(x))", "generated"]
    assert all(images.shape == (3, 3, 16, 16) for images in columns.values())
