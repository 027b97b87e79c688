"""DINO: its loss against closed forms; what the teacher sees; collapse without centring or sharpening."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
from tiny.dino import method
from tiny.lejepa import crops
from tiny.simclr import batch, resnet, vit

from mmssl.data.images import views
from mmssl.errors import BadInput
from mmssl.methods.dino import DINO
from mmssl.models import image_encoders
from mmssl.models.self_distillation import sharpened


def test_a_uniform_teacher_and_student_have_the_loss_of_the_number_of_prototypes():
    one = method().train()
    output = one.loss(torch.zeros(6, 4, 12), torch.zeros(6, 2, 12))
    assert output.loss.item() == pytest.approx(math.log(12)) == output.trivial_loss.item()
    assert output.metrics["teacher_entropy"].item() == pytest.approx(math.log(12))


def test_the_loss_is_that_of_equation_3_written_out():
    one, generator = method().eval(), torch.Generator().manual_seed(0)
    one.centre.value.uniform_(-0.2, 0.2, generator=generator)
    student, teacher = (torch.rand(3, n, 12, generator=generator) * 2 - 1 for n in (4, 2))
    total, pairs = 0.0, 0
    for image in range(3):
        for i in range(2):
            target = ((teacher[image, i] - one.centre.value) / 0.04).softmax(0)
            for j in range(4):
                if i != j:
                    log_p = (student[image, j] / 0.1).log_softmax(0)
                    total -= sum(t * p for t, p in zip(target.tolist(), log_p.tolist(), strict=True))
                    pairs += 1
    assert pairs == 3 * 6
    assert one.loss(student, teacher).loss.item() == pytest.approx(total / pairs, rel=1e-4)


def test_the_teacher_sees_the_large_views_only_and_gets_no_gradient(monkeypatch):
    one, given, seen = method().train(), batch(), []
    one.teacher_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rows = one.embed(**given)
    assert [tuple(pixels.shape) for pixels in seen] == [(12, 3, 16, 16)]
    assert torch.equal(seen[0], torch.cat(one.views(**given)[:2]))
    assert rows["student"].shape == (6, 4, 12) and rows["teacher"].shape == (6, 2, 12)
    assert rows["student"].requires_grad and not rows["teacher"].requires_grad


def test_views_of_another_size_count_as_the_same_image():
    """Row i of every view belongs to image i."""
    one, given = method().eval(), batch()
    rows = one.embed(**given)
    alone = one.embed(given["pixel_values"][2:3], given["key"][2:3])
    torch.testing.assert_close(rows["student"][2:3], alone["student"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows["teacher"][2:3], alone["teacher"], atol=1e-5, rtol=1e-4)


def test_prototypes_are_not_trained_in_the_given_fraction_of_the_run():
    one = method(freeze_prototypes_fraction=0.5).train()
    for progress, frozen in ((0.0, True), (0.5, False)):
        one.zero_grad()
        one.progress = progress
        one(**batch()).loss.backward()
        one.after_backward()
        assert (one.head.prototypes.grad is None) is frozen and one.head.mlp[0].weight.grad is not None


def test_the_centre_moves_once_a_step_in_training_only():
    one = method().eval()
    one(**batch())
    assert not one.centre.count
    output = one.train().embed(**batch())
    one.loss(**output)
    one.after_step()
    torch.testing.assert_close(one.centre.value, 0.1 * output["teacher"].mean((0, 1)))


def test_the_teacher_is_exported():
    one = method()
    assert one.exported() is one.teacher_encoder
    names = {name.split(".")[0] for name in one._heads()}
    assert names == {"encoder", "head", "teacher_head", "centre"}


def test_one_view_and_a_teacher_that_sees_none_are_refused():
    large = views.View(size=16)
    alone = views.Views([large], image_encoders.MEAN, image_encoders.STD)
    with pytest.raises(BadInput, match="large_views 1 of 1 views"):
        DINO(vit(), alone, 1)
    with pytest.raises(BadInput, match="large_views 0 of 4 views"):
        DINO(vit(), crops(), 0)


@pytest.mark.parametrize("encoder", [collapse.encoder, resnet])
def test_whole_it_does_not_collapse_in_200_steps(encoder):
    assert collapse.said(method(encoder, "batch", momentum=0.99)) is None


def test_without_centring_one_prototype_takes_all_images_and_the_monitor_says_so():
    one = method(collapse.encoder, centre_momentum=1.0)
    assert "collaps" in collapse.said(one)
    assert sharpened(one.embed(**batch())["teacher"], one.centre, 0.07).mean((0, 1)).max() > 0.9


def test_without_sharpening_it_collapses_and_the_monitor_says_so(monkeypatch):
    monkeypatch.setattr("mmssl.methods.dino.FIRST_TEMPERATURE", 0.5)
    assert "collaps" in collapse.said(method(collapse.encoder, "batch", momentum=0.99, teacher_temperature=0.5))


def test_two_large_views_without_small_ones_are_compared_with_each_other():
    large = views.Views([views.View(size=16)] * 2, image_encoders.MEAN, image_encoders.STD)
    assert DINO(vit(), large, 2, 8, 8, 4)(**batch()).loss.isfinite()
