"""iBOT: its masks, what student and teacher see, its losses and centres."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
from tiny.ibot import method, two_large_views
from tiny.simclr import batch, resnet, vit

from mmssl.errors import BadInput
from mmssl.methods.ibot import IBOT, masked_patch_loss, masks

KEYS = torch.arange(4000)


def test_half_of_the_images_are_masked_in_a_tenth_to_a_half_of_their_patches():
    masked = masks(KEYS, 8, 0)
    number = masked.sum(1)
    some = number[number > 0]
    assert masked.shape == (4000, 64)
    assert (number > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert some.min() == 6 and some.max() == 32 and some.float().mean().item() / 64 == pytest.approx(0.3, abs=0.01)


def test_masked_patches_lie_together():
    """Of two patches side by side, the second is masked more often where the first is than a random mask's would be."""
    masked = masks(KEYS, 8, 0)
    grid = masked.view(-1, 8, 8)[masked.any(1)]
    beside = grid[:, :, 1:][grid[:, :, :-1]].float().mean()
    assert beside > grid.float().mean() + 0.3


def test_masks_are_a_function_of_key_and_view():
    masked = masks(KEYS, 8, 1)
    assert torch.equal(masked[[7, 3]], masks(KEYS[[7, 3]], 8, 1)) and not torch.equal(masked, masks(KEYS, 8, 0))


def test_the_patch_loss_is_the_mean_over_masked_patches_then_over_images():
    targets, outputs = torch.full((3, 4), 0.25), torch.zeros(3, 4)
    outputs[2] = torch.tensor([0.1 * math.log(5), 0, 0, 0])  # over the temperature of 0.1: log 5
    masked = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    third = math.log(8) - math.log(5) / 4
    assert masked_patch_loss(targets, outputs, masked).item() == pytest.approx((math.log(4) + third) / 3)
    assert masked_patch_loss(targets[:0], outputs[:0], masked & False) == 0


def test_the_student_sees_nothing_of_masked_patches_and_the_teacher_sees_all(monkeypatch):
    one, given = method(crops=two_large_views()).train(), batch()
    seen = {"encoder": [], "teacher_encoder": []}
    for name, outputs in seen.items():
        network = one.get_submodule(name).layernorm
        network.register_forward_hook(lambda module, inputs, output, outputs=outputs: outputs.append(output))
    one(**given)
    views = [view.clone() for view in one.views(**given)]
    for i, view in enumerate(views):
        grid = masks(given["key"], 4, i).view(6, 1, 4, 4)
        view[grid.repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(view)] = 9.0
    monkeypatch.setattr(type(one.views), "forward", lambda self, pixel_values, key: views)
    one(**given)
    assert torch.equal(*seen["encoder"]) and not torch.equal(*seen["teacher_encoder"])


def test_the_trivial_loss_is_the_entropy_of_the_mean_target():
    one = method().train()
    classes = torch.eye(12)[torch.tensor([0, 1] * 6)] * 100  # two views of six images, two prototypes
    patches, masked = torch.zeros(4, 12), torch.zeros(12, 4, dtype=torch.bool)
    masked[0] = True
    output = one._loss(classes, classes, patches, patches, masked)
    assert output.trivial_loss.item() == pytest.approx(math.log(2) + math.log(12) / 12, rel=1e-4)


def test_prototypes_wait_for_the_given_fraction_of_the_run():
    one = method(frozen=0.5).train()
    for progress, frozen in ((0.0, True), (0.5, False)):
        one.zero_grad()
        one.progress = progress
        one(**batch()).loss.backward()
        one.after_backward()
        assert (one.head.prototypes.grad is None) is frozen and one.head.mlp[0].weight.grad is not None


def test_centres_move_in_training_only_and_by_the_teachers_outputs():
    one = method().eval()
    one(**batch())
    assert not one.class_centre.count
    one.train()(**batch())
    masked = sum(masks(batch()["key"], 4, view).sum() for view in (0, 1))
    assert one.class_centre.count == 12 and one.patch_centre.count == masked > 0
    before = one.class_centre.total / 12
    one.after_step()
    torch.testing.assert_close(one.class_centre.value, 0.01 * before)


def test_what_cannot_be_is_refused():
    with pytest.raises(BadInput, match="iBOT masks patches of a ViTModel, and this is a ResNetModel"):
        method(resnet)
    with pytest.raises(BadInput, match="global_views 1: give 2 of them or more; there are 2 views"):
        IBOT(vit(), two_large_views(), 1)


def test_without_centring_it_collapses_and_the_monitor_says_so():
    def said(centre_momentum: float) -> str | None:
        torch.manual_seed(0)
        settings = {
            "momentum": 0.99, "teacher_temperature": 0.04, "freeze_prototypes_fraction": 0.0,
            "centre_momentum": centre_momentum,
        }  # fmt: skip
        return collapse.said(IBOT(vit(), two_large_views(), 2, 64, 32, 16, **settings))

    assert said(0.9) is None
    assert "collaps" in said(1.0)  # the centre never moves
