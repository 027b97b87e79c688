"""Prototypes, centre and temperature against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.models.self_distillation import (
    Centre,
    PrototypeHead,
    between_views,
    cross_entropy,
    entropy,
    sharpened,
    warmed_up,
)


def test_outputs_are_cosines_with_the_prototypes():
    head = PrototypeHead(6, 8, 4, 5)
    with torch.no_grad():
        head.mlp[-1].bias.zero_()
        head.mlp[-1].weight.zero_()
        head.mlp[-1].bias[0] = 3.0  # all inputs lie along the first axis
        head.prototypes[0] = torch.tensor([2.0, 0, 0, 0])
        head.prototypes[1] = torch.tensor([0, 7.0, 0, 0])
    assert head(torch.randn(3, 2, 6)).shape == (3, 2, 5)
    assert head(torch.randn(2, 6))[:, :2].tolist() == [[1.0, 0.0]] * 2


def test_a_uniform_teacher_has_the_entropy_of_the_number_of_prototypes():
    teacher = sharpened(torch.ones(3, 16), Centre(16), 0.04)
    assert entropy(teacher).tolist() == pytest.approx([math.log(16)] * 3)
    assert cross_entropy(teacher, torch.zeros(3, 16), 0.1).tolist() == pytest.approx([math.log(16)] * 3)


def test_cross_entropy_is_that_of_torch():
    teacher, student = torch.randn(5, 7).softmax(1), torch.randn(5, 7)
    expected = torch.nn.functional.cross_entropy(student / 0.1, teacher, reduction="none")
    torch.testing.assert_close(cross_entropy(teacher, student, 0.1), expected)


def test_the_centre_takes_what_all_outputs_share_from_the_teacher():
    centre, shift = Centre(4, momentum=0.0), torch.tensor([5.0, 0, 0, 0])
    outputs = torch.eye(4)
    plain = sharpened(outputs - outputs.mean(0), centre, 0.1)
    centre.add(outputs + shift)
    centre.move()
    torch.testing.assert_close(sharpened(outputs + shift, centre, 0.1), plain)


def test_the_centre_moves_once_a_step_by_the_mean_of_all_that_was_added():
    centre = Centre(2, momentum=0.9)
    centre.add(torch.tensor([[1.0, 0.0]] * 3))
    centre.add(torch.tensor([[5.0, 4.0]]))
    assert not centre.value.any()
    centre.move()
    torch.testing.assert_close(centre.value, torch.tensor([0.2, 0.1]))
    centre.add(torch.tensor([[0.0, 0.0]]))
    centre.move()
    torch.testing.assert_close(centre.value, torch.tensor([0.18, 0.09]))


def test_the_temperature_grows_linearly_and_stays():
    assert [warmed_up(0.04, 0.07, done, 0.3) for done in (0.0, 0.15, 0.3, 1.0)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    assert warmed_up(0.04, 0.07, 0.0, 0.0) == 0.07


def test_each_global_view_is_a_target_for_all_other_views():
    targets = torch.eye(3).split(1)[:2]  # two images' worth would only average
    outputs = (torch.eye(3) * 10).split(1)
    right, wrong = (torch.log_softmax(100 * torch.eye(3)[0], 0)[i].neg().item() for i in (0, 1))
    assert between_views(targets, outputs, 0.1).item() == pytest.approx(wrong)  # no view is its own target
    swapped = (outputs[1], outputs[0], outputs[2])
    assert between_views(targets, swapped, 0.1).item() == pytest.approx((2 * right + 2 * wrong) / 4)
