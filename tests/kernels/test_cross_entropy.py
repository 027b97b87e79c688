import pytest
import torch
import torch.nn.functional as F
from generated import fast
from hypothesis import given
from hypothesis import strategies as st

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


@fast
@given(st.integers(0, 20), st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**31))
def test_any_number_of_rows_and_words_gives_torchs_loss(rows, words, at_once, seed):
    draw = torch.Generator().manual_seed(seed)
    logits, weight = 5 * torch.randn(rows, words, generator=draw), torch.rand(rows, generator=draw)
    targets = torch.randint(words, (rows,), generator=draw)
    expected = (F.cross_entropy(logits, targets, reduction="none") * weight).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cross_entropy.AT_ONCE, "cpu", at_once)
        loss, right = cross_entropy_(logits.clone(), targets, weight)
    torch.testing.assert_close(loss, expected)
    assert right.tolist() == (logits.gather(1, targets[:, None])[:, 0] == logits.amax(1)).tolist()


@pytest.mark.parametrize(("targets", "weight"), [(1, 4), (4, 1), (5, 4)])
def test_shapes_that_would_be_stretched_are_refused(targets, weight):
    with pytest.raises(ValueError, match=r"logits \(4, 9\)"):
        cross_entropy_(torch.zeros(4, 9), torch.zeros(targets, dtype=torch.int64), torch.ones(weight))


@pytest.mark.parametrize("target", [-1, 9])
def test_a_target_beyond_the_vocabulary_is_an_error(target):
    with pytest.raises((RuntimeError, IndexError)):
        cross_entropy_(torch.zeros(1, 9), torch.tensor([target]), torch.ones(1))
