"""DDPM: noise levels and steps against their closed forms; the export is a pipeline that draws, and an encoder."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline
from tiny.ddpm import method
from tiny.simclr import batch
from torch import Tensor, nn

from mmssl.errors import BadInput
from mmssl.methods import ddpm
from mmssl.models import ema

NEW = SimpleNamespace(
    model_name_or_path=None, size="micro", image_size=None, schedule="linear", prediction="noise", noise_levels=100
)


class Oracle(nn.Module):
    """The network that knows the image, and so the noise and the velocity."""

    def __init__(self, one: ddpm.DDPM, image: Tensor) -> None:
        super().__init__()
        self.signal, self.noise, self.image, self.of_velocity = one.signal, one.noise, image, one.predicts_velocity

    def forward(self, noised: Tensor, step: Tensor) -> SimpleNamespace:
        signal, level = self.signal[step], self.noise[step]
        noise = (noised - signal * self.image) / level
        return SimpleNamespace(sample=signal * noise - level * self.image if self.of_velocity else noise)


def image() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_image_and_noise_are_mixed_as_the_scheduler_of_the_pipeline_mixes_them(schedule):
    one, noise, step = method(schedule), torch.randn(2, 3, 16, 16), torch.tensor([3, 800])
    torch.testing.assert_close(one.noised(image(), noise, step), one.scheduler.add_noise(image(), noise, step))


def test_signal_and_noise_keep_the_variance_and_the_last_step_is_almost_pure_noise():
    one = method()
    torch.testing.assert_close(one.signal.square() + one.noise.square(), torch.ones(1000))
    assert one.signal[-1] < 0.01 and one.noise[0] < 0.02


def test_with_the_true_noise_a_step_goes_to_the_mean_of_the_posterior():
    # Ho et al. 2020, equation 7, and its form with the noise, equation 11
    one, noise, step = method(), torch.randn(2, 3, 16, 16), 500
    noised = one.noised(image(), noise, torch.tensor([step, step]))
    kept, kept_before = one.scheduler.alphas_cumprod[[step, step - 1]]
    alpha = kept / kept_before
    of_image, of_noised = kept_before.sqrt() * (1 - alpha) / (1 - kept), alpha.sqrt() * (1 - kept_before) / (1 - kept)
    by_noise = (noised - (1 - alpha) / (1 - kept).sqrt() * noise) / alpha.sqrt()
    torch.testing.assert_close(of_image * image() + of_noised * noised, by_noise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ddpm.PREDICTIONS.values())
def test_a_network_that_knows_the_image_draws_it(prediction):
    one = method(prediction=prediction)
    one.average = Oracle(one, image())
    torch.testing.assert_close(one.denoised(torch.randn(2, 3, 16, 16), steps=10)[-1], image(), atol=1e-3, rtol=0)


def test_a_network_that_predicts_0_has_the_trivial_loss_of_noise_about_1():
    for prediction in ddpm.PREDICTIONS.values():
        one, given = method(prediction=prediction), batch(24)
        nn.init.zeros_(one.unet.conv_out.weight)
        nn.init.zeros_(one.unet.conv_out.bias)
        output = one(**given)
        torch.testing.assert_close(output.loss, output.trivial_loss)
        assert prediction != "epsilon" or output.loss.item() == pytest.approx(1.0, abs=0.05)


def test_the_velocity_is_that_of_the_scheduler():
    one, noise, step = method(prediction="v_prediction"), torch.randn(2, 3, 16, 16), torch.tensor([3, 800])
    expected = one.scheduler.get_velocity(image(), noise, step)
    torch.testing.assert_close(one.velocity(image(), noise, step), expected)


@pytest.mark.parametrize("levels", [20, 100])
def test_with_fewer_noise_levels_there_is_as_much_noise_in_the_end_and_images_are_drawn_from_it(levels):
    _, scheduler, _ = ddpm.build(SimpleNamespace(**vars(NEW) | {"noise_levels": levels}), 16)
    one, seen = ddpm.DDPM(method().unet, scheduler, method().views, feature_step=10), []
    assert len(one.signal) == levels and one.signal[-1] < 0.02
    one.average.register_forward_pre_hook(lambda _, given: seen.append(int(given[1])))
    one.denoised(torch.randn(1, 3, 16, 16), steps=10)
    assert seen[0] == levels - 1 and len(seen) == 10 and seen == sorted(seen, reverse=True)


def test_steps_are_spread_over_all_noise_levels_and_differ_from_epoch_to_epoch():
    one, seen = method(), []
    one.unet.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    for epoch in range(10):
        given = batch(24)
        one(given["pixel_values"], given["key"] + 1000 * epoch)
    steps = torch.cat(seen)
    assert len(steps.unique()) > 150 and steps.min() < 50 and steps.max() > 950
    assert not torch.equal(seen[0], seen[1])


def test_evaluation_uses_the_averaged_weights():
    one, given = method().eval(), batch(4)
    before = one(**given).loss
    nn.init.zeros_(one.unet.conv_out.weight)
    assert torch.equal(one(**given).loss, before)


def test_the_encoder_gives_the_middle_block_of_the_averaged_network():
    one, pixels = method().eval(), image()
    encoder, found = one.exported(), []
    one.average.mid_block.register_forward_hook(lambda _, __, output: found.append(output))
    noised = one.signal[100] * pixels + one.noise[100] * encoder.fixed_noise
    one.average(noised, torch.tensor([100, 100]))
    given = encoder(pixels, output_hidden_states=True)
    torch.testing.assert_close(given.last_hidden_state, found[0])
    torch.testing.assert_close(given.pooler_output.flatten(1), found[0].mean((2, 3)))
    assert len(given.hidden_states) == 4  # the first layer, two levels, the middle


def test_the_directory_is_a_pipeline_that_draws_and_training_continues_from_it(tmp_path):
    one = method()
    one.save_pretrained(tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert drawn.shape == (2, 16, 16, 3)
    unet, scheduler, processor = ddpm.build(SimpleNamespace(model_name_or_path=str(tmp_path)), 32)
    assert processor.size["height"] == 16 and len(scheduler.alphas_cumprod) == 1000
    for mine, theirs in zip(one.average.parameters(), unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    again = ddpm.DDPM(unet, scheduler, one.views)
    again.continue_from(str(tmp_path))
    assert torch.equal(again.unet.conv_out.weight, one.unet.conv_out.weight)


def test_a_directory_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(BadInput, match="not a DDPMPipeline of diffusers"):
        ddpm.build(SimpleNamespace(model_name_or_path=str(tmp_path)), 32)


def test_a_side_that_the_network_cannot_halve_is_refused_and_that_of_the_data_is_rounded_up():
    with pytest.raises(BadInput, match="--image_size 30: the U-Net halves it 2 times; give a multiple of 4"):
        ddpm.build(SimpleNamespace(**vars(NEW) | {"image_size": 30}), 28)
    unet, _, processor = ddpm.build(NEW, 26)
    assert unet.config.sample_size == processor.size["height"] == 28


def test_a_feature_step_beyond_the_last_is_refused():
    one = method()
    with pytest.raises(BadInput, match="--feature_step 1000: the noise levels are 0 to 999"):
        ddpm.DDPM(one.unet, one.scheduler, one.views, feature_step=1000)


def test_the_same_images_are_drawn_in_every_run():
    one = method().eval()
    first = one.sampled(3)
    assert first.shape == (3, 3, 16, 16) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, one.sampled(3)) and not torch.equal(first[0], first[1])


def test_many_images_are_drawn_in_parts_and_are_the_same(monkeypatch):
    one, seen = method(prediction="v_prediction").eval(), []
    expected = one.sampled(5)
    monkeypatch.setattr(ddpm, "CHUNK", 2)
    one.average.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    torch.testing.assert_close(one.sampled(5), expected, atol=1e-4, rtol=0)
    assert set(seen) == {2, 1}


def test_after_few_steps_the_average_has_left_the_first_weights():
    one = method()
    one.momentum = 0.9999
    with torch.no_grad():
        for parameter in one.average.parameters():
            parameter.zero_()
        for parameter in one.unet.parameters():
            parameter.fill_(1.0)
    for _ in range(100):
        one.after_step()
    assert min(parameter.min().item() for parameter in one.average.parameters()) > 0.99
    assert ema.warmed_up(0.999, torch.tensor(10**6)).item() == pytest.approx(0.999)
