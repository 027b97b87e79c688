"""MoCo: InfoNCE against closed forms; what is in the queue and when; the key encoder."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from device import accelerator
from tiny.moco import method
from tiny.simclr import batch, resnet

from mmssl.methods.moco import info_nce
from mmssl.training import steps


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_an_aligned_key_and_an_orthogonal_queue_have_a_closed_form(temperature):
    unit = torch.eye(12)
    loss, found = info_nce(unit[:4], unit[:4], unit[4:], temperature)
    assert loss.item() == pytest.approx(math.log(1 + 8 * math.exp(-1 / temperature)), rel=1e-3, abs=1e-6)
    assert found == 1


def test_one_embedding_for_all_has_the_loss_of_chance_and_finds_nothing():
    same = F.normalize(torch.ones(20, 4), dim=1)
    loss, found = info_nce(same[:3], same[:3], same, 0.2)
    assert loss.item() == pytest.approx(math.log(21)) and found == 0


def test_a_random_queue_does_not_make_the_evaluation_of_an_encoder_that_ignores_its_input_easy():
    same = F.normalize(torch.ones(20, 64), dim=1)
    orthogonal = F.normalize(torch.eye(64)[:, :32] - torch.eye(64)[:, 32:], dim=0).T
    assert info_nce(same, same, orthogonal, 0.01)[1] == 1
    loss, found = info_nce(same, same, orthogonal, 0.01, within_batch=True)
    assert loss.item() == pytest.approx(math.log(20), rel=1e-3) and found == 0
    one = method().eval()
    assert one(**batch()).trivial_loss == pytest.approx(math.log(20 + 6))  # 20 keys in the queue, 6 of the batch


def test_the_loss_is_that_of_equation_1_written_out():
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (4, 4, 7))
    total = 0.0
    for i in range(4):
        positive, negatives = math.exp(q[i] @ k[i] / 0.3), sum(math.exp(q[i] @ other / 0.3) for other in queue)
        total -= math.log(positive / (positive + negatives))
    assert info_nce(q, k, queue, 0.3)[0].item() == pytest.approx(total / 4, rel=1e-5)


def test_the_positive_is_not_among_the_negatives():
    one, given = method().train(), batch()
    before, rows = one.queue, one.embed(**given)
    output = one.loss(**rows)
    assert torch.equal(output.loss, info_nce(rows["query"], rows["key"], before, one.temperature)[0])
    assert torch.equal(one.queue, torch.cat([before[6:], rows["key"]]))  # after the loss: the oldest out, the keys in
    output.loss.backward()  # the queue that the loss has seen is still there


def test_a_batch_larger_than_the_queue_leaves_its_last_keys():
    one = method().train()
    rows = one.embed(**batch(24))
    one.loss(**rows)
    assert torch.equal(one.queue, rows["key"][4:])


def test_an_evaluation_leaves_the_queue_as_it_is():
    one = method().eval()
    before = one.queue.clone()
    one(**batch())
    assert torch.equal(one.queue, before)


def test_no_gradient_reaches_the_key():
    one = method()
    rows = one.embed(**batch())
    assert rows["query"].requires_grad and not rows["key"].requires_grad
    key = rows["key"].requires_grad_()  # as grad_cache hands it in
    one.loss(rows["query"], key, rows["features"]).loss.backward()
    assert key.grad is None


def test_a_key_tells_nothing_of_its_batch():
    one = method(resnet).train()
    given = batch()
    keys = one.embed(**given)["key"]
    torch.testing.assert_close(one.embed(given["pixel_values"][:2], given["key"][:2])["key"], keys[:2])
    query = one.embed(given["pixel_values"][:2], given["key"][:2])["query"]
    assert not torch.allclose(query, one.embed(**given)["query"][:2], atol=1e-3)


def test_the_key_encoder_moves_once_in_a_step_of_several_micro_batches():
    one, given = method(momentum=0.75).train(), batch(8)
    before = {name: value.detach().clone() for name, value in one.named_parameters()}
    parts = [{name: value[i : i + 2] for name, value in given.items()} for i in (0, 2, 4, 6)]
    optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
    steps.grad_cache(one, parts, [optimizer], accelerator(), 1.0)
    for name, value in one.named_parameters():
        if name.startswith("key_"):
            expected = 0.75 * before[name] + 0.25 * one.get_parameter(name.removeprefix("key_"))
            torch.testing.assert_close(value, expected)


def test_v1_has_one_layer_for_a_head_and_v2_two():
    layers = {n: [p for p in method(layers=n).projection if isinstance(p, torch.nn.Linear)] for n in (1, 2)}
    assert {n: len(found) for n, found in layers.items()} == {1: 1, 2: 2}


def test_queue_and_key_encoder_are_left_for_a_run_that_continues(tmp_path):
    one, other = method(), method()
    one.queue.fill_(0.5)
    one.save_pretrained(tmp_path)
    assert {name.split(".")[0] for name in one._heads()} == {"queue", "projection", "key_encoder", "key_projection"}
    other.continue_from(str(tmp_path))
    assert (other.queue == 0.5).all()
