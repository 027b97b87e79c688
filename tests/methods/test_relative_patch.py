"""Relative patch position: where patches lie; each shortcut and its cure; the loss written out; collapse."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
from tiny.relative_patch import method
from tiny.simclr import batch, resnet, vit
from torch import Tensor, nn

from mmssl.data.images import patches, views
from mmssl.errors import BadInput
from mmssl.methods.relative_patch import AROUND, CENTRE, RelativePatch, fitting, places
from mmssl.models import image_encoders, on_patches

KEYS = torch.arange(2000)


def test_a_patch_is_cut_at_its_place():
    pixels = torch.arange(2 * 3 * 9 * 7).view(2, 3, 9, 7)
    top, left = torch.tensor([[0, 5, 2], [4, 1, 5]]), torch.tensor([[3, 0, 1], [2, 3, 0]])
    found = patches.cut(pixels, top, left, 4)
    for image in range(2):
        for i in range(3):
            y, x = top[image, i], left[image, i]
            assert torch.equal(found[image, i], pixels[image, :, y : y + 4, x : x + 4])


def test_patches_lie_in_the_image_in_the_order_of_their_classes_and_never_touch():
    """A gap of 5, and a jitter of 2 either way: at least one pixel is between two patches."""
    top, left = places(KEYS, (50, 46), 10, 5, 2)
    for start, side in ((top, 50), (left, 46)):
        assert start.min() == 0 and start.max() == side - 10
    for i, place in enumerate(AROUND):
        row, column = place // 3 - 1, place % 3 - 1
        assert (row, column) == [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)][i]
        for start, direction in ((top, row), (left, column)):
            apart = start[:, place] - start[:, CENTRE]
            assert set(apart.tolist()) == set(range(15 * direction - 4, 15 * direction + 5))
        assert max(abs(top[:, place] - top[:, CENTRE]), abs(left[:, place] - left[:, CENTRE]), key=min).min() > 10


def test_the_places_follow_from_the_key():
    top, left = places(KEYS, (50, 46), 10, 5, 2)
    again, _ = places(KEYS[7:9], (50, 46), 10, 5, 2)
    assert torch.equal(again, top[7:9]) and not torch.equal(top, left)


def test_patches_that_could_touch_are_refused():
    with pytest.raises(BadInput, match="--gap 0.5, --jitter 0.25 of patches of 8 pixels: they would touch"):
        method(patch_size=8, gap=0.5, jitter=0.25)


def textured(aberration: int, n: int = 40, side: int = 48) -> Tensor:
    """(n, 3, side, side): grey noise; a lens moves green outwards, by `aberration` pixels at the border."""
    grey = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0))
    at = torch.arange(side) - (side - 1) / 2
    source = (at * (1 - 2 * aberration / side) + (side - 1) / 2).round().long()
    return torch.cat([grey, grey[:, :, source][:, :, :, source], grey], dim=1)


def shift_of_green(seen: Tensor) -> Tensor:
    """(..., 2): by how many pixels (down, right) green lies beside red, where it is most like it; 0 for a grey patch.
    All that a network can see of an aberration. seen: (..., 3, side, side)."""
    side, best, found = seen.shape[-1], None, None
    red = seen[..., 0, 2:-2, 2:-2]
    moves = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
    for y, x in sorted(moves, key=lambda move: abs(move[0]) + abs(move[1])):
        green = seen[..., 1, 2 + y : side - 2 + y, 2 + x : side - 2 + x]
        error = (red - green).square().mean((-1, -2))
        move = torch.tensor([y, x]).expand(*error.shape, 2)
        if best is None:
            best, found = error, move
        better = error < best - 1e-6
        best, found = torch.where(better, error, best), torch.where(better[..., None], move, found)
    return found


def towards_the_centre(found: Tensor) -> float:
    """Fraction of the eight classes that the shifts of green, (images, 9, 2), tell: as the sign of each coordinate."""
    expected = torch.tensor([[place // 3 - 1, place % 3 - 1] for place in AROUND])
    return (found[:, list(AROUND)].sign() == expected).all(-1).float().mean().item()


def test_an_aberration_tells_the_place_of_a_patch_unless_colours_are_dropped_or_projected():
    top, left = places(torch.arange(40), (48, 48), 11, 5, 1)
    seen = patches.cut(textured(aberration=2), top, left, 11)
    drawn = torch.rand(40, 9, generator=torch.Generator().manual_seed(0))
    projected = patches.without_green_magenta(seen, torch.tensor([0.229, 0.224, 0.225]))
    assert towards_the_centre(shift_of_green(seen)) > 0.9
    for cured in (patches.one_channel(seen, drawn), projected / projected.std()):
        assert (shift_of_green(cured) == 0).all()


def test_each_patch_keeps_one_channel_by_a_draw_of_its_own():
    one = method(colour="drop").eval()
    kept, dropped = method(colour="keep").eval(), one.patches(**batch())
    whole = kept.patches(**batch())
    assert torch.equal(dropped, dropped[:, :, :1].expand_as(dropped))
    which = (dropped[:, :, :1] == whole).flatten(3).all(3)  # (images, patches, channels)
    assert which.any(2).all() and (which.float().mean((0, 1)) > 0.15).all()
    assert len({tuple(row) for row in which.float().argmax(2).T.tolist()}) > 1  # of one image, not all the same


def test_a_projected_patch_carries_nothing_from_green_to_magenta_and_all_else():
    std, generator = torch.tensor([0.229, 0.224, 0.225]), torch.Generator().manual_seed(0)
    pixels, amount = torch.rand(2, 3, 5, 5, generator=generator), torch.rand(2, 1, 5, 5, generator=generator)
    axis = torch.tensor(patches.GREEN_MAGENTA)[:, None, None]
    scale = std[:, None, None]
    seen, shifted = (patches.without_green_magenta(x / scale, std) * scale for x in (pixels, pixels + amount * axis))
    torch.testing.assert_close(seen, shifted)
    torch.testing.assert_close((seen * axis).sum(1), torch.zeros(2, 5, 5))
    across = torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    torch.testing.assert_close((seen * across).sum(1), (pixels * across).sum(1))
    torch.testing.assert_close(seen.sum(1), pixels.sum(1))


@pytest.mark.parametrize("colour", ["drop", "project", "keep"])
def test_what_the_encoder_sees_is_made_of_the_view_by_the_colour_that_is_asked_for(colour):
    one, kept = method(colour=colour).train(), method(colour="keep").train()
    seen, whole = one.patches(**batch()), kept.patches(**batch())
    (view,) = kept.views(**batch())
    assert torch.equal(whole, patches.cut(view, *places(batch()["key"], (32, 32), 7, 4, 1), 7))
    assert torch.equal(seen, whole) == (colour == "keep")


def test_on_noise_a_network_stays_at_chance():
    """What could still tell a place (borders of the image, interpolation, the order in the batch) would show here."""
    torch.manual_seed(0)
    view = views.Views([views.View(scale=(0.5, 1.0), jitter=0.0, grey=0.0)], [0.5] * 3, [0.2] * 3)
    one, generator = RelativePatch(on_patches.patchwise(resnet(), 8), view), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(one.parameters(), lr=3e-3)

    def drawn() -> dict[str, Tensor]:
        pixels = torch.randint(0, 256, (64, 3, 36, 36), generator=generator, dtype=torch.uint8)
        return {"pixel_values": pixels, "key": torch.randint(0, 2**32, (64,), generator=generator)}

    for _ in range(50):
        one(**drawn()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        accuracy = torch.stack([one(**drawn()).metrics["accuracy"] for _ in range(8)]).mean()
    assert accuracy == pytest.approx(1 / 8, abs=0.025)  # about four deviations of 4,096 draws


def test_the_loss_is_the_cross_entropy_of_the_pairs_written_out():
    one, given, total, right = method(resnet).eval(), batch(), 0.0, 0
    seen = one.patches(**given)
    for nine in seen:
        features = [image_encoders.features(one.encoder, patch[None])[0] for patch in nine]
        for true, place in enumerate(AROUND):
            scores = one.classifier(torch.cat([features[4], features[place]])[None])[0].tolist()
            total -= scores[true] - math.log(sum(math.exp(score) for score in scores))
            right += scores.index(max(scores)) == true
    output = one(**given)
    assert output.loss.item() == pytest.approx(total / 48, rel=1e-4)
    assert output.metrics["accuracy"].item() == pytest.approx(right / 48)
    centres = image_encoders.features(one.encoder, seen[:, 4])
    torch.testing.assert_close(output.features, centres, rtol=1e-4, atol=1e-5)


def test_equal_scores_have_the_loss_of_chance():
    one = method()
    nn.init.zeros_(one.classifier[-1].weight)
    nn.init.zeros_(one.classifier[-1].bias)
    output = one(**batch())
    assert output.loss.item() == pytest.approx(math.log(8)) == output.trivial_loss
    assert output.metrics["accuracy"] == 1 / 8


def test_the_figure_maps_what_the_network_says_beside_the_true_place():
    one, given = method().eval(), batch()
    nn.init.zeros_(one.classifier[-1].weight)
    one.classifier[-1].bias.data = torch.tensor([0.0, 0, 0, 0, 100.0, 0, 0, 0])  # always to the right
    columns = one.shown(**given)
    assert list(columns) == ["image", "centre patch", "other patch", "probabilities", "true place"]
    expected = torch.zeros(3, 3)
    expected[1, 2] = 1
    seen = one.views.to_unit_range(one.patches(**given))
    for i in range(6):
        said, true = columns["probabilities"][i, 0], columns["true place"][i, 0].clone()
        said[1, 1] = true[1, 1] = 0  # the blue centre
        torch.testing.assert_close(said, expected)
        assert true.sum() == 1
        assert torch.equal(columns["other patch"][i], seen[i, true.flatten().argmax()])
        assert torch.equal(columns["centre patch"][i], seen[i, 4])


@pytest.mark.parametrize("side", [16, 32, 64, 96, 224])
def test_the_default_patches_are_the_largest_that_fit(side):
    largest = fitting(side)

    def room(patch: int) -> int:
        top, left = places(KEYS, (side, side), patch, round(patch / 2), max(1, round(0.07 * patch)))
        return max(top.max(), left.max()) + patch if min(top.min(), left.min()) >= 0 else side + 1

    assert room(largest) <= side < room(largest + 1)


def test_a_vit_and_patches_without_room_are_refused():
    with pytest.raises(BadInput, match="a ViTModel takes images of one size"):
        method(vit)
    with pytest.raises(BadInput, match="--crop_size 8: three patches with their gaps and jitter take 34 pixels"):
        method(patch_size=8)(**batch())


def test_the_heads_are_the_classifier_alone(tmp_path):
    one, other = method(), method()
    nn.init.constant_(one.classifier[-1].weight, 0.25)
    one.save_pretrained(tmp_path)
    assert all(name.startswith("classifier.") for name in one._heads())
    other.continue_from(str(tmp_path))
    assert (other.classifier[-1].weight == 0.25).all()


class Blank(RelativePatch):
    """Patches too small to show anything, as of a clear sky."""

    def patches(self, pixel_values: Tensor, key: Tensor) -> Tensor:
        found = super().patches(pixel_values, key)
        return found.mean((3, 4), keepdim=True).mean((0, 1, 2), keepdim=True).expand_as(found)


def test_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(resnet)) is None


def test_where_patches_show_nothing_it_collapses_and_the_monitor_says_so():
    assert "collaps" in collapse.said(method(resnet, Blank))
