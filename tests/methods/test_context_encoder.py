"""The context encoder: what is hidden, how it is weighed, and that the encoder sees nothing of it."""

from __future__ import annotations

import pytest
import torch
from tiny.context_encoder import method
from tiny.simclr import batch

from mmssl.errors import BadInput
from mmssl.evaluation.restoration import nearest_pixel
from mmssl.methods.context_encoder import OF_OVERLAP, rectangles, shrunk


def test_the_centre_has_half_of_the_height_and_width():
    (hole,) = method().hole(torch.tensor([7]))[0]
    assert hole.shape == (16, 16) and hole[4:12, 4:12].all() and hole.sum() == 64


def test_random_holes_are_a_function_of_the_key_and_hide_up_to_a_quarter_everywhere():
    one, key = method(region="random"), torch.arange(500)
    holes = one.hole(key)
    assert torch.equal(holes[3:5], one.hole(key[3:5])) and len({tuple(h.flatten().tolist()) for h in holes}) > 400
    fraction = holes.float().mean((1, 2, 3))
    assert 0.15 < fraction.mean() < 0.25 and fraction.max() < 0.32 and fraction.min() > 0.05
    assert holes.any(0).all()  # also the corners


def test_rectangles_are_joined():
    top, left, high, wide = (torch.tensor([[a, b]]) for a, b in ((0, 2), (0, 1), (1, 2), (2, 1)))
    assert rectangles(top, left, high, wide, (4, 3))[0, 0].int().tolist() == [
        [1, 1, 0],
        [0, 0, 0],
        [0, 1, 0],
        [0, 1, 0],
    ]


def test_a_hole_loses_its_border_but_not_the_border_of_the_image():
    hole = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    hole[..., 1:5, 2:] = True
    assert shrunk(hole, 1)[0, 0].nonzero().tolist() == [[y, x] for y in (2, 3) for x in (3, 4, 5)]
    assert torch.equal(shrunk(hole, 0), hole)


@pytest.mark.parametrize("region", ["centre", "random"])
def test_the_encoder_gets_the_mean_colour_in_the_hole_and_nothing_of_what_is_hidden(region):
    one, given = method(region=region).eval(), batch(4)
    pixels, hidden = one.views.whole(given["pixel_values"]), shrunk(one.hole(given["key"]), 1)
    seen = one.given(pixels, given["key"])
    assert torch.equal((seen == 0).all(1, keepdim=True), hidden)
    other = torch.where(hidden, 0.5, pixels)
    assert torch.equal(one.given(other, given["key"]), seen)
    # the border of the hole is seen: the overlap
    border = one.hole(given["key"]) & ~hidden
    assert border.any() and torch.equal(seen * border, pixels * border)


def test_only_the_hole_counts_and_its_border_ten_times():
    one, hole = method(), method().hole(torch.tensor([0]))
    pixels, inner = torch.zeros(1, 3, 16, 16), shrunk(hole, 1)
    outside, border, inside = (part.float().expand(1, 3, 16, 16) for part in (~hole, hole & ~inner, inner))
    assert one.squared_error(outside, pixels, hole) == 0
    assert one.squared_error(inside, pixels, hole).item() == pytest.approx(36 / 64)
    assert one.squared_error(border, pixels, hole).item() == pytest.approx(OF_OVERLAP * 28 / 64)
    # what is reported is the error where nothing is seen
    key = torch.tensor([0])
    assert one.errors(inside, pixels, key).item() == pytest.approx(1)
    assert one.errors(border + outside, pixels, key).item() == 0


def test_with_a_discriminator_that_says_one_half_it_learns_the_squared_error_alone():
    both, alone, given = method(), method(adversarial=0.0), batch(4)
    torch.nn.init.zeros_(both.discriminator.head.weight)
    torch.nn.init.zeros_(both.discriminator.head.bias)
    for one in (both, alone):
        one(**given).loss.backward()
    for part in ("encoder", "code", "decoder"):
        pairs = zip(getattr(both, part).parameters(), getattr(alone, part).parameters(), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine.grad, (1 - both.adversarial) * theirs.grad)


def test_the_discriminator_s_loss_gives_encoder_and_decoder_no_gradient():
    one = method()
    one(**batch(4), phase=0).loss.backward()
    discriminator, others = one.players()
    assert all(p.grad is None for p in others.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_the_figure_shows_the_hole_its_filling_and_the_truth():
    one, given = method().eval(), batch(3)
    with torch.no_grad():
        columns = one.shown(given["pixel_values"], given["key"])
    hole = one.hole(given["key"])
    assert list(columns) == ["given", "filled", "true"]
    torch.testing.assert_close(columns["true"], given["pixel_values"] / 255, atol=1e-5, rtol=0)
    assert torch.equal(columns["filled"] * ~hole, columns["true"] * ~hole)
    assert not torch.equal(columns["filled"] * hole, columns["true"] * hole)


def test_a_hidden_pixel_is_filled_with_the_nearest_one():
    given = torch.arange(1.0, 6.0).expand(1, 3, 4, 5).clone()
    given[..., 1:4] = 0
    assert nearest_pixel(given)[0, 0, 0].tolist()[:2] == [1, 1] and nearest_pixel(given)[0, 2, 3].tolist()[3:] == [5, 5]
    assert torch.equal(nearest_pixel(given + 1), given + 1)


def test_an_overlap_without_room_is_refused():
    with pytest.raises(BadInput, match="--overlap 4: a hole in 16 x 16 pixels has no room"):
        method(overlap=4)
