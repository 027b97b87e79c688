"""BYOL: its loss against closed forms; what the target is; collapse where a part is missing."""

from __future__ import annotations

import collapse
import pytest
import torch
from tiny.byol import method
from tiny.simclr import batch, resnet
from torch import nn

from mmssl.methods.byol import regression


@pytest.mark.parametrize(("target", "loss"), [([3.0, 0.0], 0.0), ([-2.0, 0.0], 4.0), ([0.0, 5.0], 2.0)])
def test_equal_opposite_and_orthogonal_have_losses_of_0_4_and_2_at_any_length(target, loss):
    assert regression(torch.tensor([[1.0, 0.0]]), torch.tensor([target])).item() == pytest.approx(loss)


def test_each_view_predicts_the_target_of_the_other():
    one = method().train()
    rows = one.embed(**batch())
    expected = regression(rows["prediction1"], rows["target2"]) + regression(rows["prediction2"], rows["target1"])
    assert torch.equal(one.loss(**rows).loss, expected)


def test_no_gradient_reaches_the_target():
    one = method()
    rows = one.embed(**batch())
    assert rows["prediction1"].requires_grad and not rows["target1"].requires_grad
    rows["target1"].requires_grad_()  # as grad_cache hands it in
    one.loss(**rows).loss.backward()
    assert rows["target1"].grad is None


def test_the_target_begins_equal_and_follows_with_a_momentum_that_grows_with_the_progress():
    one = method(momentum=0.5)
    names = ["encoder.layernorm.bias", "projection.0.weight"]
    start = {name: one.get_parameter(f"target_{name}").clone() for name in names}
    assert all(torch.equal(start[name], one.get_parameter(name)) for name in names)
    with torch.no_grad():
        for name in names:
            one.get_parameter(name).add_(1.0)
    for progress, moved in ((1.0, 0.0), (0.5, 0.25), (0.0, 0.625)):
        one.progress = progress
        one.after_step()
        for name in names:
            torch.testing.assert_close(one.get_parameter(f"target_{name}"), start[name] + moved)


def test_the_target_normalises_by_its_own_batch():
    one, given = method(resnet).train(), batch()
    few = one.embed(given["pixel_values"][:2], given["key"][:2])["target1"]
    assert not torch.allclose(few, one.embed(**given)["target1"][:2], atol=1e-3)


def test_the_online_encoder_is_exported_and_the_rest_left_for_a_run_that_continues():
    one = method()
    assert one.exported() is one.encoder
    parts = {name.split(".")[0] for name in one._heads()}
    assert parts == {"projection", "predictor", "target_encoder", "target_projection"}


def test_whole_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(collapse.encoder)) is None


@pytest.mark.parametrize("encoder", [collapse.encoder, resnet])
def test_without_a_predictor_it_collapses_and_the_monitor_says_so(encoder):
    one = method(encoder)
    one.predictor = nn.Identity()
    assert "collaps" in collapse.said(one)
