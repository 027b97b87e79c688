"""Rotation prediction: turns only move pixels; the loss written out; what tells a turn is the content; collapse."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
from tiny.rotation import method
from tiny.simclr import batch, resnet
from torch import Tensor, nn

from mmssl.data.images import views
from mmssl.errors import BadInput
from mmssl.method import Output
from mmssl.methods.rotation import Rotation, rotations
from mmssl.models import image_encoders


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_turn_is_a_permutation_of_the_pixels_so_that_interpolation_leaves_no_trace():
    pixels = noise(2, 3, 6, 6)
    turned = rotations(pixels)
    expected = pixels.flatten(2).sort(2).values
    for turn in range(4):
        assert torch.equal(turned[:, turn].flatten(2).sort(2).values, expected)


def test_a_pixel_moves_counterclockwise_a_quarter_for_each_turn_and_four_turns_are_none():
    pixels = torch.zeros(1, 1, 5, 5)
    pixels[0, 0, 0, 1] = 1  # top, left of the middle
    places = [tuple(each.nonzero()[0].tolist()) for each in rotations(pixels)[0, :, 0]]
    assert places == [(0, 1), (3, 0), (4, 3), (1, 4)]
    assert torch.equal(rotations(rotations(pixels)[:, 1])[:, 3], pixels)


class Recorded(Rotation):
    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.encoder.register_forward_pre_hook(lambda _, inputs: setattr(self, "seen", inputs[0]))


def test_each_image_of_a_batch_is_seen_in_all_four_rotations_of_the_same_view():
    one, given = method(kind=Recorded).train(), batch()
    one(**given)
    (view,) = one.views(**given)
    assert torch.equal(one.seen, rotations(view).flatten(0, 1))


def test_equal_scores_have_the_loss_of_chance():
    one = method()
    nn.init.zeros_(one.classifier.weight)
    nn.init.zeros_(one.classifier.bias)
    output = one(**batch())
    assert output.loss.item() == pytest.approx(math.log(4)) == output.trivial_loss
    assert output.metrics["accuracy"] == 0.25


def test_the_loss_is_the_cross_entropy_of_the_turns_written_out():
    one, given, total, right = method().eval(), batch(), 0.0, 0
    pixels = one.views.whole(given["pixel_values"])
    for image in pixels:
        for turn in range(4):
            turned = torch.rot90(image, turn, (1, 2))[None]
            scores = one.classifier(image_encoders.features(one.encoder, turned))[0].tolist()
            total -= scores[turn] - math.log(sum(math.exp(score) for score in scores))
            right += scores.index(max(scores)) == turn
    output = one(**given)
    assert output.loss.item() == pytest.approx(total / 24, rel=1e-5)
    assert output.metrics["accuracy"].item() == pytest.approx(right / 24)
    upright = image_encoders.features(one.encoder, pixels)
    torch.testing.assert_close(output.features, upright, rtol=1e-4, atol=1e-5)


def test_on_images_without_an_upright_position_a_network_stays_at_chance():
    """White noise is as likely in any position. What a network could still tell a turn by (interpolation, borders,
    padding, the order in the batch) would show here."""
    torch.manual_seed(0)
    one = Rotation(resnet(), views.Views([views.View(scale=(0.5, 1.0), jitter=0.0, grey=0.0)], [0.5] * 3, [0.2] * 3))
    optimizer, generator = torch.optim.AdamW(one.parameters(), lr=3e-3), torch.Generator().manual_seed(0)

    def drawn() -> dict[str, Tensor]:
        pixels = torch.randint(0, 256, (64, 3, 24, 24), generator=generator, dtype=torch.uint8)
        return {"pixel_values": pixels, "key": torch.randint(0, 2**32, (64,), generator=generator)}

    for _ in range(60):
        one(**drawn()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        accuracy = torch.stack([one(**drawn()).metrics["accuracy"] for _ in range(8)]).mean()
    assert accuracy == pytest.approx(0.25, abs=0.04)  # four deviations of 2,048 draws


def test_the_figure_turns_an_image_back_where_the_prediction_is_right():
    one, given = method().eval(), batch()
    columns = one.shown(**given)
    assert [each.shape for each in columns.values()] == [(6, 3, 16, 16)] * 3
    wrong = set()
    for k, predicted in enumerate(torch.eye(4)):  # always k turns
        nn.init.zeros_(one.classifier.weight)
        one.classifier.bias.data = predicted
        columns = one.shown(**given)
        for image, turned, back in zip(*columns.values(), strict=True):
            assert torch.equal(back, torch.rot90(turned, -k, (1, 2)))
            wrong.add(torch.equal(back, image) == torch.equal(turned, torch.rot90(image, k, (1, 2))))
    assert wrong == {True}


def test_images_that_are_not_square_are_refused():
    with pytest.raises(BadInput, match="images of 4 x 6 pixels: their shape tells a quarter turn"):
        rotations(noise(1, 3, 4, 6))


def test_the_heads_are_the_classifier_alone(tmp_path):
    one, other = method(), method()
    nn.init.constant_(one.classifier.weight, 0.25)
    one.save_pretrained(tmp_path)
    assert set(one._heads()) == {"classifier.weight", "classifier.bias"}
    other.continue_from(str(tmp_path))
    assert (other.classifier.weight == 0.25).all()


class Unturned(Rotation):
    """All images are of the first class."""

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        features = image_encoders.features(self.encoder, self.views(pixel_values, key)[0])
        scores = self.classifier(features).log_softmax(1)
        return Output(-scores[:, 0].mean(), features=features.detach())


def test_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(collapse.encoder)) is None


def test_where_all_images_are_of_one_class_it_collapses_and_the_monitor_says_so():
    assert "collaps" in collapse.said(method(collapse.encoder, Unturned))
