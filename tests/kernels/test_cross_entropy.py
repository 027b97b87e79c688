import pytest
import torch
import torch.nn.functional as F
from generated import fast
from hypothesis import given
from hypothesis import strategies as st

from mmssl.kernels import cross_entropy
from mmssl.kernels.cross_entropy import cross_entropy_, linear_cross_entropy


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


@pytest.mark.parametrize("chunk", [1, 60, 2**22])  # logits: a row, several rows and a rest, all
@pytest.mark.parametrize("bias", [True, False])
def test_with_its_last_layer_loss_and_gradients_are_those_of_torch(monkeypatch, chunk, bias):
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", chunk)
    torch.manual_seed(0)
    features, head = torch.randn(11, 5, requires_grad=True), torch.nn.Linear(5, 23, bias=bias)
    targets, weight = torch.randint(23, (11,)), torch.rand(11)
    inputs = [features, *head.parameters()]

    logits = head(features)
    each = F.cross_entropy(logits, targets, reduction="none")
    gradients = torch.autograd.grad(3 * (each * weight).sum(), inputs)

    loss, nats, right = linear_cross_entropy(features, head.weight, head.bias, targets, weight)
    torch.testing.assert_close(loss, (each * weight).sum())
    torch.testing.assert_close(nats, each)
    assert right.tolist() == (logits.argmax(1) == targets).tolist()
    for mine, theirs in zip(torch.autograd.grad(3 * loss, inputs), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_under_autocast_its_loss_is_fp32_and_its_products_are_not():
    torch.manual_seed(0)
    features, matrix = torch.randn(40, 64, requires_grad=True), torch.randn(90, 64, requires_grad=True)
    targets, weight = torch.randint(90, (40,)), torch.full((40,), 1 / 40)
    with torch.autocast("cpu", torch.bfloat16):
        loss, nats, _ = linear_cross_entropy(features, matrix, None, targets, weight)
        expected = F.cross_entropy((features @ matrix.mT).float(), targets, reduction="none")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(nats, expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    assert features.grad.dtype == matrix.grad.dtype == torch.float32


@pytest.mark.parametrize("chunk", [90, 60 * 90, 2**22])  # logits: a row, several rows, all
def test_rounded_products_of_any_number_of_words_give_torchs_gradients(monkeypatch, chunk):
    """The rounded matrix has rows of zeros beyond the vocabulary, and its gradient is added in blocks."""
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", chunk)
    monkeypatch.setitem(cross_entropy.ADDED, "cpu", 1000)
    torch.manual_seed(0)
    inputs = features, matrix, bias = [torch.randn(shape, requires_grad=True) for shape in ((100, 64), (90, 64), (90,))]
    targets, weight = torch.randint(90, (100,)), torch.full((100,), 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        mine = torch.autograd.grad(linear_cross_entropy(features, matrix, bias, targets, weight)[0], inputs)
        logits = (features @ matrix.mT).float() + bias
    expected = torch.autograd.grad(F.cross_entropy(logits, targets), inputs)
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * other.abs().max().item())


def test_without_a_row_the_gradients_are_zeros():
    features, matrix = torch.ones(0, 4, requires_grad=True), torch.ones(9, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    linear_cross_entropy(features, matrix, None, none, torch.zeros(0))[0].backward()
    assert not matrix.grad.any() and features.grad.shape == (0, 4)


def test_a_target_that_is_all_but_impossible_has_a_finite_loss():
    matrix = torch.tensor([[0.0], [500.0]], requires_grad=True)
    _, nats, right = linear_cross_entropy(torch.ones(1, 1), matrix, None, torch.tensor([0]), torch.ones(1))
    assert nats.item() == 500 and not right.item()
