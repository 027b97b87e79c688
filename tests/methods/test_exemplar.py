"""Exemplar-CNN: its loss against closed forms; classes are images; new copies; collapse where all are one class."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
import torch.nn.functional as F
from tiny.deepcluster import Stored
from tiny.exemplar import method
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images.numbered import NEVER_TRAINED, Numbered
from mmssl.errors import BadInput
from mmssl.methods.exemplar import Exemplar


def test_classes_with_equal_weights_have_the_loss_of_chance():
    one = method()
    torch.nn.init.ones_(one.classifier.weight)
    output = one.loss(F.normalize(torch.rand(5, 16), dim=1), torch.rand(5, 32), torch.arange(5))
    assert output.loss.item() == pytest.approx(math.log(24)) == output.trivial_loss


def test_an_image_on_its_own_axis_has_the_loss_of_the_temperature():
    """Its score is 1, the scores of the 15 others are 0."""
    one = method(classes=16)
    with torch.no_grad():
        one.classifier.weight.copy_(3 * torch.eye(16))
    output = one.loss(torch.eye(16)[[2, 7]], torch.rand(2, 32), torch.tensor([2, 7]))
    assert output.loss.item() == pytest.approx(math.log(1 + 15 * math.exp(-10)), rel=1e-3)
    assert output.metrics["accuracy"] == 1


def test_the_loss_is_the_cross_entropy_written_out():
    one, label = method(), torch.tensor([3, 20, 3])
    hidden = F.normalize(torch.rand(3, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    output, total, right = one.loss(hidden, hidden, label), 0.0, 0
    weight = one.classifier.weight.detach()
    for h, own in zip(hidden, label.tolist(), strict=True):
        scores = [float(weight[i] @ h / weight[i].norm()) / 0.1 for i in range(24)]
        total -= scores[own] - math.log(sum(math.exp(score) for score in scores))
        right += scores.index(max(scores)) == own
    assert output.loss.item() == pytest.approx(total / 3, rel=1e-5)
    assert output.metrics["accuracy"].item() == pytest.approx(right / 3)


def test_an_image_is_its_own_class_in_whatever_order_it_comes():
    given = Numbered(Stored(), count=10).__getitems__([4, 0, 9])
    del given["index"]
    assert method().embed(**given)["label"].tolist() == [4, 0, 9]


class Pictures(Stored):
    """Its keys change with the epoch, as those of data.images.pictures do."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return super().__getitem__(i) | {"key": draws.draw(torch.tensor(i), 0, self.epoch)}


def test_copies_for_the_evaluation_are_of_training_images_with_keys_that_training_never_draws():
    images = Numbered(Pictures(), count=10)
    copies = images.copies(4)
    before = copies.__getitems__([0, 1, 2, 3])
    images.set_epoch(5)
    trained, after = images.__getitems__([0, 1, 2, 3]), copies.__getitems__([0, 1, 2, 3])
    assert len(copies) == 4 and torch.equal(before["key"], after["key"])
    assert torch.equal(trained["pixel_values"], after["pixel_values"]) and torch.equal(trained["row"], after["row"])
    assert torch.equal(after["key"], draws.draw(after["index"], 0, NEVER_TRAINED))
    assert not torch.isin(trained["key"], after["key"]).any()


def test_more_classes_than_memory_holds_are_refused_with_the_flags():
    one = method()
    with pytest.raises(BadInput, match="--classes 1000000000000, --hidden_dim 256: training .* weights takes"):
        Exemplar(one.encoder, one.views, 10**12)


def test_the_classifier_is_not_left_for_another_run(tmp_path):
    one, other = method(), method()
    with torch.no_grad():
        one.hidden[0].weight.fill_(0.25)
    one.save_pretrained(tmp_path)
    assert all(name.startswith("hidden.") for name in one._heads())
    other.continue_from(str(tmp_path))
    assert (other.hidden[0].weight == 0.25).all()


class OfOneClass(Exemplar):
    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        return super().embed(pixel_values, key, torch.zeros_like(key))


class OfAllClasses(Exemplar):
    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        return super().embed(pixel_values, key, torch.arange(len(key)))


def test_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(collapse.encoder, OfAllClasses)) is None


def test_with_one_class_for_all_images_it_collapses_and_the_monitor_says_so():
    assert "collaps" in collapse.said(method(collapse.encoder, OfOneClass))
