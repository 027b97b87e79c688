"""Jigsaw: the set of permutations; shuffling and putting together; chance; plain loading; collapse."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
from tiny.cpc_image import bit
from tiny.deepcluster import one_view
from tiny.jigsaw import method
from tiny.simclr import batch, resnet, vit
from torch import Tensor

from mmssl.data.images import tiles
from mmssl.errors import BadInput
from mmssl.methods.jigsaw import Jigsaw, affine_maps, permutation_set
from mmssl.models import on_patches


def smallest_distance(permutations: Tensor) -> int:
    distance = (permutations[:, None] != permutations[None]).sum(2)
    return distance[~torch.eye(len(permutations), dtype=torch.bool)].min().item()


def test_the_affine_maps_are_permutations_and_two_of_them_agree_in_at_most_one_place():
    maps = affine_maps()
    assert maps.shape == (72, 9) and torch.equal(maps.sort(1).values, torch.arange(9).expand(72, 9))
    assert smallest_distance(maps[:9]) == 9 and smallest_distance(maps) == 8
    assert maps[0].tolist() == list(range(9)) or (maps == torch.arange(9)).all(1).any()


@pytest.mark.parametrize("count", [2, 9, 64, 72])
def test_up_to_72_permutations_differ_in_at_least_8_of_9_places(count):
    assert len(permutation_set(count)) == count and smallest_distance(permutation_set(count)) >= 8


def test_more_permutations_are_chosen_greedily_far_from_each_other():
    chosen = permutation_set(80)
    assert torch.equal(chosen[:72], affine_maps()) and len(chosen.unique(dim=0)) == 80
    assert torch.equal(chosen.sort(1).values, torch.arange(9).expand(80, 9))
    random = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(80)])
    assert smallest_distance(chosen) >= 6 > smallest_distance(random)


def test_tiles_are_shuffled_by_the_permutation_and_its_inverse_puts_them_together():
    one = method(count=64)
    cut = torch.rand(5, 9, 3, 4, 4)
    order = torch.tensor([0, 3, 20, 63, 40])
    shuffled = one.shuffled(cut, order)
    for image in range(5):
        for place in range(9):
            assert torch.equal(shuffled[image, place], cut[image, one.permutations[order[image], place]])


def test_a_perfect_prediction_puts_the_image_together():
    class Solved(Jigsaw):
        def solve(self, cut: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
            return torch.nn.functional.one_hot(order, len(self.permutations)).float(), cut.flatten(1)

    one = Solved(on_patches.patchwise(bit(), 4), one_view(), 64, 8, 16).eval()
    shown = one.shown(**batch())
    assert list(shown) == ["image", "shuffled", "put together"]
    cut, _ = one.puzzle(**batch())
    torch.testing.assert_close(shown["put together"], one.views.to_unit_range(tiles.together(cut)))
    assert not torch.allclose(shown["shuffled"], shown["put together"])


def test_the_loss_starts_at_that_of_chance_and_is_the_cross_entropy_written_out():
    one = method()
    output = one(**batch())
    assert output.loss.item() == pytest.approx(output.trivial_loss) == pytest.approx(math.log(6))
    torch.nn.init.normal_(one.classifier[-1].weight)
    one.eval()
    cut, order = one.puzzle(**batch())
    logits = one.solve(cut, order)[0].detach()
    expected = sum(-float(scores.softmax(0)[n].log()) for scores, n in zip(logits, order, strict=True)) / 6
    assert one(**batch()).loss.item() == pytest.approx(expected, rel=1e-4)


def test_all_permutations_are_drawn_equally_often_whatever_the_image():
    one = method(count=8)
    pixels = batch(1)["pixel_values"].expand(800, -1, -1, -1)
    _, order = one.puzzle(pixels, torch.arange(800))
    assert torch.bincount(order, minlength=8).min() > 70


def test_the_classifier_sees_tiles_with_a_mean_of_zero_and_a_deviation_of_one():
    seen = []
    one = method(resnet).eval()
    one.encoder.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    one(**batch())
    assert seen[0].shape == (6 * 9, 3, 4, 4)
    assert seen[0].mean((2, 3)).abs().max() < 1e-4 and (seen[0].std((2, 3), correction=0) - 1).abs().max() < 0.05


def test_without_objects_the_permutation_stays_at_chance():
    """Noise has no order; the light comes from above, the colours of a lens are displaced outwards. A whole run on such
    images must not learn the permutation."""
    one = method(resnet, count=4)
    optimizer = torch.optim.AdamW(one.parameters(), lr=3e-3)
    light = torch.linspace(0, 120, 16)[:, None]

    def images(seed: int) -> dict[str, Tensor]:
        noise = 120 * torch.rand(48, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": (light + noise).to(torch.uint8), "key": torch.arange(48) + 1000 * seed}

    for step in range(60):
        one(**images(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    one.eval()
    with torch.no_grad():
        found = torch.stack([one(**images(100 + i)).metrics["accuracy"] for i in range(8)]).mean()
    assert abs(found - 1 / 4) < 0.1


def test_the_heads_hold_the_permutations_and_another_number_of_them_is_refused(tmp_path):
    method(count=6).save_pretrained(tmp_path)
    assert {name.split(".")[0] for name in method()._heads()} == {"tile", "classifier", "permutations"}
    with pytest.raises(BadInput, match="give the flags that it was trained with"):
        method(count=8).continue_from(str(tmp_path))


def test_a_vit_and_a_tile_larger_than_its_cell_are_refused():
    with pytest.raises(BadInput, match="a ViTModel takes images of one size"):
        method(vit)
    with pytest.raises(BadInput, match="--tile_size 8: a tile is larger than its cell of 5 x 5 pixels"):
        method(tile_size=8)(**batch())


class Blind(Jigsaw):
    def solve(self, cut: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        return super().solve(torch.zeros_like(cut), order)


def test_an_encoder_that_gets_no_image_learns_nothing_and_the_monitor_says_so():
    torch.manual_seed(0)
    assert "features have collapsed" in collapse.said(Blind(on_patches.patchwise(resnet(), 4), one_view(), 6, 8, 16))


def test_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(resnet)) is None
