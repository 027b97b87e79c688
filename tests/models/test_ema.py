"""Teachers: what moves, how far, and how the momentum grows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.models import ema


def test_weights_and_running_statistics_move_by_one_minus_the_momentum_and_counters_are_copied():
    student = nn.BatchNorm1d(4)
    teacher = ema.teacher_of(student)
    assert not any(p.requires_grad for p in teacher.parameters()) and student.weight.requires_grad
    with torch.no_grad():
        student.weight.fill_(3.0)
        student.running_mean.fill_(8.0)
        student.num_batches_tracked.fill_(5)
    ema.update(teacher, student, 0.75)
    assert (teacher.weight == 1.5).all() and (teacher.running_mean == 2.0).all()
    assert teacher.num_batches_tracked == 5


def test_the_momentum_grows_to_1_by_a_cosine():
    grown = [ema.momentum(0.96, progress) for progress in (0.0, 0.5, 1.0)]
    assert grown == pytest.approx([0.96, 0.98, 1.0])
