"""SwAV: assignments and loss against closed forms; prototypes; the queue; collapse without Sinkhorn."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
import torch.nn.functional as F
from tiny.lejepa import crops
from tiny.simclr import batch, resnet, vit
from tiny.swav import method

from mmssl.data.images import views
from mmssl.errors import BadInput
from mmssl.methods.swav import SwAV
from mmssl.models import image_encoders
from mmssl.models.self_distillation import sinkhorn


def test_rows_and_prototypes_get_equal_mass():
    scores = torch.rand(64, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    q = sinkhorn(scores, 0.05, 100)
    torch.testing.assert_close(q.sum(1), torch.ones(64))
    torch.testing.assert_close(q.sum(0), torch.full((8,), 8.0), rtol=1e-2, atol=1e-2)


def test_the_assignment_is_that_of_the_algorithm_written_out():
    """Appendix A, in plain Python."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(5, 3, generator=generator) * 2 - 1
    q = [[math.exp(scores[b, k].item() / 0.05) for k in range(3)] for b in range(5)]
    for _ in range(3):
        columns = [sum(row[k] for row in q) for k in range(3)]
        q = [[row[k] / columns[k] / 3 for k in range(3)] for row in q]
        q = [[value / sum(row) / 5 for value in row] for row in q]
    expected = torch.tensor([[5 * value for value in row] for row in q])
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), expected, rtol=1e-4, atol=1e-6)


def test_without_iterations_it_is_a_softmax():
    scores = torch.randn(4, 3)
    torch.testing.assert_close(sinkhorn(scores, 0.5, 0), (scores / 0.5).softmax(1))


def test_rows_beside_take_their_share_of_the_prototypes():
    """All rows prefer prototype 0; where the others already fill it, these go to prototype 1."""
    rows, others = torch.tensor([[0.5, 0.4]] * 4), torch.tensor([[1.0, -1.0]] * 4)
    assert sinkhorn(rows, 0.05, 50)[0].tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    q = sinkhorn(rows, 0.05, 50, beside=others)
    assert q.shape == (4, 2) and q[0, 1] > 0.95


def test_equal_views_of_well_separated_images_have_the_loss_of_the_temperature():
    """Each image lies on a prototype of its own: its target is nearly hard, its scores are 1 there and 0 elsewhere."""
    one = method(temperature=0.1).eval()
    with torch.no_grad():
        one.prototypes.copy_(F.one_hot(torch.arange(12) % 8, 8).float())
        one.prototypes[8:] = -one.prototypes[:4]
    z = torch.cat([torch.eye(8), -torch.eye(8)[:4]])[:, None].expand(-1, 4, -1)
    scores = one.prototypes @ one.prototypes.T
    expected = -(scores[0] / 0.1).log_softmax(0)[0].item()
    assert one.loss(z).loss.item() == pytest.approx(expected, abs=1e-4)
    assert one.loss(z).metrics["prototype_found"] == 1


def test_one_embedding_for_all_images_has_the_loss_of_chance():
    one = method().eval()
    with torch.no_grad():
        one.prototypes.copy_(F.normalize(torch.ones(12, 8), dim=1))
    z = F.normalize(torch.randn(6, 4, 8), dim=2)
    output = one.loss(z)
    assert output.loss.item() == pytest.approx(math.log(12)) == output.trivial_loss


def test_only_large_views_are_targets():
    one, given = method().train(), batch()
    rows = one.embed(**given)["z"]
    assert rows.shape == (6, 4, 8)
    seen = []
    one._assigned, before = lambda scores, view: seen.append(view) or before(scores, view), one._assigned
    one.loss(rows)
    assert seen == [0, 1]


def test_prototypes_have_unit_length_after_a_step_and_wait_for_the_given_fraction_of_the_run():
    one = method(freeze_prototypes_fraction=0.5).train()
    for progress, frozen in ((0.0, True), (0.5, False)):
        one.zero_grad()
        one.progress = progress
        one(**batch()).loss.backward()
        one.after_backward()
        assert (one.prototypes.grad is None) is frozen and one.projection[0].weight.grad is not None
    with torch.no_grad():
        one.prototypes.mul_(3)
    one.after_step()
    torch.testing.assert_close(one.prototypes.norm(dim=1), torch.ones(12))


def test_the_queue_counts_once_it_is_full_and_only_in_training():
    one, plain = method(queue_size=10).train(), method().train()
    given = batch()
    one.eval()(**given)
    assert not one.queued
    one.train()
    z = one.embed(**given)["z"]
    assert torch.equal(one.loss(z).loss, plain.loss(z).loss)  # empty
    assert torch.equal(one.queue[0, :6], z[:, 0]) and torch.equal(one.queue[1, :6], z[:, 1])
    assert torch.equal(one.loss(z).loss, plain.loss(z).loss)  # 6 of 10
    assert not torch.equal(one.loss(z).loss, plain.loss(z).loss)
    assert one.queued == 18


def test_what_cannot_be_is_refused():
    alone = views.Views([views.View(size=16)], image_encoders.MEAN, image_encoders.STD)
    with pytest.raises(BadInput, match="large_views 1 of 1 views: SwAV compares at least 2 views"):
        SwAV(vit(), alone, 1)
    with pytest.raises(BadInput, match="large_views 5 of 4 views"):
        SwAV(vit(), crops(), 5)


@pytest.mark.parametrize("encoder", [collapse.encoder, resnet])
def test_whole_it_does_not_collapse_in_200_steps(encoder):
    assert collapse.said(method(encoder, "batch")) is None


@pytest.mark.parametrize("encoder", [collapse.encoder, resnet])
def test_without_sinkhorn_it_collapses_and_the_monitor_says_so(encoder):
    assert "collaps" in collapse.said(method(encoder, "batch", iterations=0))
