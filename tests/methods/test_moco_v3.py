"""MoCo v3: its loss against closed forms; the momentum encoder; the frozen patches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny.moco_v3 import method
from tiny.simclr import batch, resnet

from mmssl.methods.moco_v3 import contrast


def test_equal_views_of_all_images_have_the_loss_of_chance():
    same = F.normalize(torch.ones(7, 4), dim=1)
    assert contrast(same, same, 0.2)[0].item() == pytest.approx(2 * 0.2 * math.log(7))


@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_aligned_pairs_orthogonal_to_all_others_have_a_closed_form(temperature):
    loss, found = contrast(torch.eye(6), torch.eye(6), temperature)
    assert loss.item() == pytest.approx(2 * temperature * math.log(1 + 5 * math.exp(-1 / temperature)), rel=1e-3)
    assert found == 1


def test_each_view_is_compared_with_the_other_views_of_the_batch_and_none_of_its_own_kind():
    one = method().train()
    rows = one.embed(**batch())
    expected = contrast(rows["q1"], rows["k2"], 0.2)[0] + contrast(rows["q2"], rows["k1"], 0.2)[0]
    output = one.loss(**rows)
    assert torch.equal(output.loss, expected) and output.trivial_loss == pytest.approx(0.8 * math.log(6))
    assert rows["q1"].requires_grad and not rows["k1"].requires_grad


def test_the_patch_projection_of_a_vit_is_frozen_unless_asked_otherwise():
    def frozen(one) -> set[str]:
        return {name for name, p in one.encoder.named_parameters() if not p.requires_grad and "pooler" not in name}

    assert frozen(method()) == {f"embeddings.patch_embeddings.projection.{name}" for name in ("weight", "bias")}
    assert not frozen(method(freeze_patches=False)) and not frozen(method(resnet))


def test_the_momentum_encoder_stands_still_at_the_end():
    one = method(momentum=0.5)
    before = {name: value.detach().clone() for name, value in one.named_parameters()}
    with torch.no_grad():
        for value in one.projection.parameters():
            value.add_(1.0)
    one.progress = 1.0
    one.after_step()
    assert all(torch.equal(value, before[n]) for n, value in one.named_parameters() if n.startswith("momentum_"))
    one.progress = 0.5  # 0.75 of itself
    one.after_step()
    weight = "momentum_projection.0.weight"
    torch.testing.assert_close(one.get_parameter(weight), before[weight] + 0.25)
