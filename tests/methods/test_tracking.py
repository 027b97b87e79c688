"""Tracking: the tracker follows; the ranking loss; hard patches; plain loading; collapse."""

from __future__ import annotations

import collapse
import pytest
import torch
import torch.nn.functional as F
import whole_images
from tiny.simclr import resnet, vit
from tiny.tracking import method
from tiny.video_lstm import TIME, Clips
from torch import Tensor

from mmssl.data import draws
from mmssl.data.video import tracks
from mmssl.errors import BadInput
from mmssl.methods.tracking import Tracking, ranking_loss


def batch(n: int = 8) -> dict[str, Tensor]:
    return {"pixel_values": Clips().pixels[:n], "key": draws.draw(torch.arange(n), 0, 0)}


def moving_patch() -> tuple[Tensor, Tensor]:
    """A textured patch of 8 x 8 on a dark frame, and where it is: two pixels down and one to the right each frame."""
    texture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    clips, places = torch.zeros(1, 7, 3, 32, 32), []
    for t in range(7):
        places.append([4 + 2 * t, 6 + t])
        clips[0, t, :, places[t][0] : places[t][0] + 8, places[t][1] : places[t][1] + 8] = texture
    return clips, torch.tensor([places])


def test_a_patch_that_moves_is_found_and_followed():
    clips, places = moving_patch()
    found, scores = tracks.follow(clips, places[:, 0], 8, 3)
    assert torch.equal(found, places) and scores.min() > 0.999
    starts = torch.cat([tracks.most_moving(clips, 8, torch.tensor([drawn])) for drawn in (0.2, 0.5, 0.8)])
    assert (starts - places[0, 0]).abs().max() <= 6


def test_a_patch_beyond_the_reach_is_lost_and_its_score_says_so():
    clips, places = moving_patch()
    _, scores = tracks.follow(clips[:, [0, 6]], places[:, 0], 8, 2)
    assert scores[0, 1] < 0.8


def test_where_nothing_moves_the_patch_stays():
    still = torch.rand(2, 1, 3, 20, 20).expand(-1, 5, -1, -1, -1)
    start = torch.tensor([[3, 4], [0, 12]])
    found, _ = tracks.follow(still, start, 8, 3)
    assert torch.equal(found, start[:, None].expand(-1, 5, -1))
    assert tracks.most_moving(still, 8, torch.tensor([0.0, 0.999])).max() <= 12


def test_rounding_does_not_choose_among_places_that_look_alike():
    stripes = torch.rand(1, 1, 3, 1, 20, generator=torch.Generator().manual_seed(0)).expand(1, 2, 3, 20, 20)
    nearly = stripes + 1e-7 * torch.rand(1, 2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    found, scores = tracks.follow(nearly, torch.tensor([[6, 5]]), 8, 3)
    assert found[0].tolist() == [[6, 5], [6, 5]] and scores.min() > 0.999


def test_tracks_are_the_same_in_half_precision():
    rand = torch.Generator().manual_seed(0)
    repeats = torch.rand(20, 4, generator=rand).repeat(1, 6) + 0.02 * torch.rand(20, 24, generator=rand)
    clips = torch.stack([repeats, repeats.roll(3, 1)])[None, :, None].expand(-1, -1, 3, -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = tracks.follow(clips, torch.tensor([[6, 6]]), 8, 3)
    assert found[0].tolist() == [[6, 6], [6, 9]]  # one pixel to the left it looks almost the same


def test_the_ranking_loss_in_closed_form():
    same = F.normalize(torch.ones(4, 3), dim=1)
    assert ranking_loss(same, same).item() == pytest.approx(0.5)  # all alike: the margin
    apart = torch.eye(4)
    assert ranking_loss(apart, apart).item() == 0.0  # the others are farther than the margin
    assert ranking_loss(apart, apart.roll(1, 0)).item() == pytest.approx((1.5 + 2 * 0.5) / 3)
    assert ranking_loss(apart, apart.roll(1, 0), hardest=1).item() == pytest.approx(1.5)


def test_the_hardest_patches_count_alone_later_in_the_training():
    one = method().train()
    losses = []
    for progress in (0.0, 0.6):
        one.progress = progress
        losses.append(one(**batch()).loss.item())
    assert losses[1] > losses[0]


def test_which_last_patch_is_nearest_is_not_decided_in_half_precision():
    angle = torch.arange(8) * 0.01
    ends = torch.stack([angle.cos(), angle.sin()], 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = method().loss(ends, ends, ends, torch.ones(8))
    assert found.metrics["found_in_batch"] == 1


def test_a_batch_of_one_is_refused():
    with pytest.raises(BadInput, match="--per_device_train_batch_size 1"):
        method()(**batch(1))


def test_it_loads_plainly_and_takes_whole_images(tmp_path):
    one = method(resnet).eval()
    whole_images.assert_loads_and_takes_them(one, tmp_path)
    shown = one.shown(**batch())
    assert {rows.shape for rows in shown.values()} == {(8, TIME, 3, 16, 16)}


def test_an_encoder_of_one_size_is_refused():
    with pytest.raises(BadInput, match="a ViTModel takes images of one size"):
        method(vit)


class Blind(Tracking):
    def tracked(self, pixel_values: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        cut, score = super().tracked(pixel_values, key)
        return torch.zeros_like(cut), score


def test_an_encoder_that_gets_no_patches_learns_nothing_and_the_monitor_says_so():
    blind = method()
    blind.__class__ = Blind
    assert "features have collapsed" in collapse.said(blind, batch=batch())
