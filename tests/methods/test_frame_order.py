"""Frame order: which frames a tuple has; that nothing but the content tells their order; chance; plain loading."""

from __future__ import annotations

import math

import pytest
import torch
import whole_images
from tiny.frame_order import method
from tiny.simclr import resnet, vit
from tiny.video_lstm import Clips
from torch import Tensor

from mmssl.data import draws
from mmssl.errors import BadInput
from mmssl.methods.frame_order import KINDS, check_map, displacements, tuples

KEYS = draws.draw(torch.arange(4000), 0, 0)


def batch(n: int = 8) -> dict[str, Tensor]:
    return {"pixel_values": Clips().pixels[:n], "key": KEYS[:n]}


@pytest.mark.parametrize("time", [5, 6, 16, 33])
def test_a_tuple_is_in_order_if_its_middle_lies_between_the_others(time):
    numbers, label = tuples(KEYS, time, "shuffle")
    first, middle, last = numbers.unbind(1)
    between = (middle - first) * (last - middle) > 0
    assert torch.equal(between, label.bool()) and numbers.min() >= 0 and numbers.max() < time
    assert (first < last).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert label.float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("time", [3, 16])
def test_the_arrow_of_time_is_the_order_of_equally_distant_frames(time):
    numbers, label = tuples(KEYS, time, "arrow")
    steps = numbers.diff(dim=1)
    assert torch.equal(steps[:, 0], steps[:, 1]) and torch.equal(steps[:, 0] > 0, label.bool())
    assert numbers.min() == 0 and numbers.max() == time - 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_outer_frames_of_a_tuple_tell_nothing(kind):
    numbers, label = tuples(KEYS, 16, kind)
    for outer in (numbers[:, 0] + numbers[:, 2], (numbers[:, 0] - numbers[:, 2]).abs()):
        of = [outer[label == value].float().mean().item() for value in (0, 1)]
        assert of[0] == pytest.approx(of[1], abs=0.3)


def test_a_position_is_found_where_its_features_have_moved_to():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    places = torch.stack([rows, columns], -1).flatten(0, 1)
    features = torch.eye(16).unflatten(0, (4, 4))  # each position has features of its own
    moved = features.roll((1, -1), (0, 1))
    found = displacements(features.flatten(0, 1)[None], moved.flatten(0, 1)[None], places, 0.01)[0].unflatten(0, (4, 4))
    torch.testing.assert_close(found[:3, 1:, :2], torch.tensor([1.0, -1.0]).expand(3, 3, 2))
    torch.testing.assert_close(found[..., 2], torch.ones(4, 4))  # each at one position


def test_what_is_everywhere_alike_is_found_at_the_mean_of_all_positions():
    places = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    alike = torch.tensor([1.0, 2.0]).expand(1, 2, 2)
    found = displacements(alike, alike, places, 0.1)[0]
    torch.testing.assert_close(found[:, :2], torch.tensor([[0.0, 1.5], [0.0, -1.5]]))
    torch.testing.assert_close(found[:, 2], torch.full((2,), 0.5**0.5))


def test_before_training_the_loss_is_that_of_chance():
    assert method().eval()(**batch()).loss.item() == pytest.approx(math.log(2), abs=1e-5)


def accuracy_after_training(clips: Tensor, kind: str) -> float:
    """On draws that were not trained on. clips: (24, time, 3, 16, 16) uint8."""
    torch.manual_seed(0)
    one = method(vit, kind).train()
    optimizer = torch.optim.AdamW(one.parameters(), lr=3e-3)
    for step in range(100):
        one(clips, KEYS[24 * step : 24 * step + 24]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    one.eval()
    with torch.no_grad():
        found = [one(clips, KEYS[3000 + 24 * i : 3024 + 24 * i]).metrics["accuracy"] for i in range(30)]
    return torch.stack(found).mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_clips_that_stand_still_give_no_better_than_chance(kind):
    """What a frame gets by its place in a tuple, crop, light, noise, channel, must not tell the order."""
    still = Clips().pixels[:, :1].expand(-1, 6, -1, -1, -1)
    assert accuracy_after_training(still, kind) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_learned_from_what_moves(kind):
    clips = torch.zeros(24, 6, 3, 16, 16, dtype=torch.uint8)
    for time in range(6):
        clips[:, time, :, :, 2 * time : 2 * time + 4] = 255
    assert accuracy_after_training(clips, kind) > 0.75


def test_each_frame_is_seen_in_its_own_way():
    one, clips = method().train(), batch()
    still = clips["pixel_values"][:, :1].expand(-1, 6, -1, -1, -1)
    given = one.given(still, clips["key"], torch.tensor([[0, 1, 2]]).expand(8, 3))
    assert not torch.allclose(given[:, 0], given[:, 1], atol=0.05)
    assert torch.equal(given[:, :, 0], given[:, :, 1])  # one colour channel, three times


def test_it_loads_plainly_as_an_encoder_of_images(tmp_path):
    one = method(resnet).eval()
    whole_images.assert_loads_and_takes_them(one, tmp_path)


def test_too_few_frames_are_refused():
    with pytest.raises(BadInput, match="--frames 4: --kind shuffle takes its frames from 5 or more"):
        method(vit)(Clips(8, 4).pixels, KEYS[:8])


def test_a_map_that_is_too_coarse_is_refused():
    with pytest.raises(
        BadInput, match="frames of 16 x 16 pixels, a ResNetModel has 2 x 2 positions, too few to show what"
    ):
        check_map(resnet(), (16, 16))
    check_map(vit(), (16, 16))


def test_the_figure_marks_the_truth_and_the_prediction():
    shown = method().eval().shown(**batch())
    assert shown["frames"].shape == shown["given"].shape == (8, 4, 3, 16, 16)
    _, label = tuples(KEYS[:8], 6, "shuffle")
    assert torch.equal(shown["frames"][:, 3].mean((1, 2, 3)), label.float())
