"""SimSiam: its loss against closed forms; the predictor's constant rate; collapse where a part is missing."""

from __future__ import annotations

import collapse
import pytest
import torch
import torch.nn.functional as F
from tiny.simclr import batch
from tiny.simsiam import method
from torch import Tensor, nn

from mmssl.method import Output
from mmssl.methods.simsiam import SimSiam, distance
from mmssl.training import optim


@pytest.mark.parametrize(("z", "loss"), [([3.0, 0.0], -1.0), ([-2.0, 0.0], 1.0), ([0.0, 5.0], 0.0)])
def test_equal_opposite_and_orthogonal_have_losses_of_minus_1_1_and_0_at_any_length(z, loss):
    assert distance(torch.tensor([[1.0, 0.0]]), torch.tensor([z])).item() == pytest.approx(loss)


def test_no_gradient_goes_to_what_is_predicted():
    p, z = (torch.randn(4, 3, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (0, 1))
    distance(p, z).backward()
    assert p.grad.abs().sum() > 0 and z.grad is None


def test_each_view_predicts_the_projection_of_the_other():
    one = method().train()
    rows = one.embed(**batch())
    expected = distance(rows["p1"], rows["z2"]) / 2 + distance(rows["p2"], rows["z1"]) / 2
    assert torch.equal(one.loss(**rows).loss, expected)


def test_the_projection_has_unit_variance_and_the_predictor_a_narrow_middle():
    one = method().train()
    torch.testing.assert_close(one.embed(**batch())["z1"].var(0, correction=0), torch.ones(16), atol=0.05, rtol=0)
    assert [tuple(p.shape) for p in one.predictor.parameters() if p.ndim == 2] == [(8, 16), (16, 8)]


def test_the_learning_rate_of_the_predictor_stays():
    one = method()
    optimizer = optim.adamw(one, 0.1, weight_decay=0.01, constant=one.predictor)
    for factor in (1.0, 0.25):
        optim.set_learning_rate([optimizer], factor)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    held = set(one.predictor.parameters())
    assert len(rates) == sum(p.requires_grad for p in one.parameters())
    assert all(rate == (0.1 if p in held else 0.025) for p, rate in rates.items())


class WithoutStopGradient(SimSiam):
    def loss(self, p1: Tensor, z1: Tensor, p2: Tensor, z2: Tensor) -> Output:
        loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
        return Output(loss, features=z1.detach())


def test_whole_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(collapse.encoder)) is None


def test_with_a_gradient_through_the_target_it_collapses_and_the_monitor_says_so():
    torch.manual_seed(0)
    whole = method(collapse.encoder)
    one = WithoutStopGradient(whole.encoder, whole.views, 16, 8)
    assert "collaps" in collapse.said(one)


def test_without_a_predictor_it_collapses_and_the_monitor_says_so():
    one = method(collapse.encoder)
    one.predictor = nn.Identity()
    assert "collaps" in collapse.said(one)
