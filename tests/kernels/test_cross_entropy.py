import pytest
import torch
import torch.nn.functional as F

from mmssl.kernels import cross_entropy
from mmssl.kernels.cross_entropy import cross_entropy_


@pytest.mark.parametrize("at_once", [1, 60, 2**18])  # logits: a row, several rows and a rest, all
@pytest.mark.parametrize("large", [1.0, 200.0])  # logits whose exponentials overflow
def test_loss_and_gradient_are_those_of_torch(monkeypatch, at_once, large):
    monkeypatch.setitem(cross_entropy.AT_ONCE, "cpu", at_once)
    torch.manual_seed(0)
    features, head = torch.randn(11, 5), torch.nn.Linear(5, 23)
    targets, weight = torch.randint(23, (11,)), torch.rand(11)
    features.requires_grad_()
    inputs = [features, *head.parameters()]

    expected = large * head(features)
    right = expected.argmax(1) == targets
    expected = (F.cross_entropy(expected, targets, reduction="none") * weight).sum()
    gradients = torch.autograd.grad(3 * expected, inputs)

    loss, found = cross_entropy_(large * head(features), targets, weight)
    torch.testing.assert_close(loss, expected)
    assert found.tolist() == right.tolist()
    for mine, theirs in zip(torch.autograd.grad(3 * loss, inputs), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6 * large)


def test_equal_logits_are_a_guess_among_all():
    loss, _ = cross_entropy_(torch.zeros(3, 50), torch.tensor([1, 2, 3]), torch.full((3,), 1 / 3))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(50.0)).item())


def test_nothing_hidden_is_no_loss():
    logits = torch.zeros(0, 50, requires_grad=True)
    loss, right = cross_entropy_(logits * 1, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0 and right.shape == (0,)


def test_logits_are_overwritten_by_their_gradient():
    logits = torch.randn(4, 9)
    before = logits.clone()
    cross_entropy_(logits, torch.tensor([0, 1, 2, 3]), torch.ones(4))
    expected = before.softmax(1) - F.one_hot(torch.tensor([0, 1, 2, 3]), 9)
    torch.testing.assert_close(logits, expected)
