"""Colour by pointing: copying; that the encoder sees grey; carrying masks on; its measure; plain loading."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import whole_images
from tiny.color_copying import method
from tiny.simclr import resnet
from tiny.video_lstm import TIME, Clips
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images import views
from mmssl.errors import BadInput
from mmssl.evaluation.propagation import intersection_over_union
from mmssl.methods.color_copying import COLOURS, cluster_colours, copied
from mmssl.models import image_encoders


def batch(n: int = 4) -> dict[str, Tensor]:
    return {"pixel_values": Clips().pixels[:n], "key": draws.draw(torch.arange(n), 0, 0)}


def test_a_position_that_is_like_one_reference_alone_copies_its_value():
    values = torch.randn(1, 5, 3)
    similarity = torch.full((1, 2, 5), -100.0)
    similarity[0, 0, 3] = similarity[0, 1, 1] = 100.0
    torch.testing.assert_close(copied(similarity, values), values[:, [3, 1]])
    torch.testing.assert_close(copied(torch.zeros(1, 1, 5), values)[:, 0], values.mean(1))


def test_frames_are_drawn_at_equal_distances_and_the_last_is_coloured():
    keys = draws.draw(torch.arange(500), 0, 0)
    chosen = method().chosen(keys, torch.zeros(1, 9, 1))
    gaps = chosen.diff(dim=1)
    assert chosen.shape == (500, 3) and (gaps == gaps[:, :1]).all() and gaps.min() == 1 and gaps.max() == 4
    assert chosen.min() == 0 and chosen.max() == 8


def test_neither_the_method_nor_the_exported_encoder_sees_colours():
    one = method(resnet).eval()
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
    for _ in range(3):
        one(**batch()).loss.backward()
        optimizer.step()
        one.after_step()
    pixels = torch.rand(2, 3, 16, 16)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (pixels * luma).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        seen, same = (one.encoder(one.views.normalised(x)).last_hidden_state for x in (pixels, grey))
    torch.testing.assert_close(seen, same, atol=1e-4, rtol=1e-3)


class OfLightness(type(method())):
    """Positions are alike if they are equally light."""

    def positions(self, lightness, size):
        cells = F.adaptive_avg_pool2d(lightness / 100, size)[:, 0]
        angle = 3 * cells
        return torch.stack([angle.cos(), angle.sin()], -1), cells.flatten(1)


def test_masks_follow_what_they_lie_on_better_than_a_copy_does():
    one = method()
    one.__class__, one.temperature = OfLightness, 0.005
    clips = torch.zeros(1, 6, 3, 32, 32, dtype=torch.uint8)
    true = torch.zeros(1, 6, 32, 32, dtype=torch.int64)
    for t in range(6):
        clips[:, t, :, 8:16, 4 * t : 4 * t + 8] = 255
        true[:, t, 8:16, 4 * t : 4 * t + 8] = 1
    first = F.one_hot(true[:, 0], 2).permute(0, 3, 1, 2)
    found = one.propagate(clips, first)
    assert found.shape == (1, 6, 2, 32, 32)
    carried = intersection_over_union(found.argmax(2), true, 2)
    assert carried > 60 > intersection_over_union(true[:, :1].expand_as(true), true, 2)


def test_what_is_most_alike_is_not_decided_in_half_precision():
    angle = torch.arange(16) * 0.01
    points = torch.stack([angle.cos(), angle.sin()], 1).view(1, 1, 4, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        similarity = method().similarity(points, points)
    assert torch.equal(similarity.argmax(2)[0], torch.arange(16))


def test_the_measure_is_over_objects_that_are_there():
    true = torch.tensor([[[[0, 1], [1, 2]]]])
    assert intersection_over_union(true, true, 4) == 100  # the third object is nowhere
    found = torch.tensor([[[[0, 1], [0, 2]]]])
    assert intersection_over_union(found, true, 4).item() == pytest.approx(75.0)


def test_colours_are_clustered_and_grey_clips_are_refused():
    made = views.Views([views.WHOLE], image_encoders.MEAN, image_encoders.STD)

    class Batches(Clips):
        def __getitems__(self, rows):
            return {"pixel_values": self.pixels[rows]}

    data = Batches()
    data.pixels = torch.randint(0, 256, data.pixels.shape, dtype=torch.uint8)
    assert cluster_colours(data, made).shape == (COLOURS, 2)
    data.pixels = data.pixels[:, :, :1].expand(-1, -1, 3, -1, -1)
    with pytest.raises(BadInput, match="all clips are grey"):
        cluster_colours(data, made)


def test_it_loads_plainly_and_shows_carried_colours(tmp_path):
    one = method(resnet).eval()
    whole_images.assert_loads_and_takes_them(one, tmp_path)
    shown = one.shown(**batch())
    assert {rows.shape for rows in shown.values()} == {(4, TIME, 3, 16, 16)}
