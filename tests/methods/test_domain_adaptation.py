"""Domain adaptation: the losses written out, the reversed gradient, the plan of a known transport, no target labels."""

from __future__ import annotations

import itertools
import math

import pytest
import tiny_encoders
import torch
from accelerate import PartialState
from device import USE_CPU, accelerator
from tiny.domain_adaptation import NAMES, method, parts, tiny
from tiny.simclr import resnet

from mmssl.data import joined, labelled, sources
from mmssl.data.labelled import Labelled
from mmssl.errors import BadInput
from mmssl.methods import domain_adaptation as adaptation
from mmssl.models import classifiers
from mmssl.training import steps


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_coral_is_zero_for_shifted_features_and_known_for_scaled_ones():
    z = noise(500, 3)
    assert adaptation.coral(z, z + 5).item() == pytest.approx(0, abs=1e-8)
    expected = (3 * torch.cov(z.T)).square().sum() / (4 * 9)  # of z and 2 z: the difference is 3 times the covariance
    torch.testing.assert_close(adaptation.coral(z, 2 * z), expected)


def test_the_gradient_is_reversed_and_scaled_and_the_value_is_not():
    x = noise(4, 2).requires_grad_()
    y = adaptation.reversed_gradient(x, 0.25)
    assert torch.equal(y, x)
    (3 * y).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, -0.75))


def test_lambda_rises_from_zero_to_almost_one():
    assert adaptation.growth(0) == 0
    assert adaptation.growth(0.1) == pytest.approx((math.e - 1) / (math.e + 1))  # tanh(1 / 2)
    assert 0.9999 < adaptation.growth(1) < 1


def test_in_dann_the_classifier_of_domains_learns_and_the_encoder_unlearns():
    one = method("dann")
    one.progress = 0.5
    source, target, given = noise(6, 32).requires_grad_(), (noise(6, 32, seed=1) + 1).requires_grad_(), noise(6, 3)
    loss, trivial = one.alignment_loss(source, target, given, torch.zeros(6, dtype=torch.long))
    assert trivial == pytest.approx(math.log(2))
    loss.backward()
    with torch.no_grad():
        one.progress = 0.0

        def after(z: torch.Tensor, other: torch.Tensor) -> float:
            return one.alignment_loss(z, other, given, None)[0].item()

        here = after(source, target)
        assert after(source - 0.1 * source.grad, target - 0.1 * target.grad) > here  # a step down is a step apart
        for parameter in one.domains.parameters():
            parameter -= 0.01 * parameter.grad
        assert after(source, target) < here


def test_the_cost_of_transport_is_that_of_equation_6_pair_by_pair():
    source, target, label, logits = noise(3, 4), noise(2, 4, seed=1), torch.tensor([0, 2, 1]), noise(2, 3, seed=2)
    cost = adaptation.transport_cost(source, target, label, logits, 0.5, 2.0)
    for i, j in itertools.product(range(3), range(2)):
        features = (source[i] - target[j]).square().sum()
        entropy = torch.nn.functional.cross_entropy(logits[j], label[i])
        assert cost[i, j].item() == pytest.approx((0.5 * features + 2 * entropy).item(), rel=1e-4)


def test_the_plan_undoes_a_permutation():
    points, order = noise(6, 2) * 10, torch.tensor([3, 0, 5, 1, 4, 2])
    plan = adaptation.transport_plan(torch.cdist(points, points[order]))
    expected = torch.eye(6)[:, order] / 6
    torch.testing.assert_close(plan, expected)


def test_the_plan_is_the_cheapest_of_all_permutations():
    cost = noise(5, 5).abs()
    plan = adaptation.transport_plan(cost)
    best = min(sum(cost[i, j].item() for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
    assert (plan * cost).sum().item() == pytest.approx(best / 5, rel=1e-5)
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 0.2))


@pytest.mark.parametrize("alignment", adaptation.ALIGNMENTS)
def test_features_that_ignore_the_input_have_the_trivial_loss(alignment):
    one = method(alignment)
    one.progress, same = 0.5, torch.ones(6, 32)
    if one.domains is not None:
        torch.nn.init.zeros_(one.domains[-1].weight)
        torch.nn.init.zeros_(one.domains[-1].bias)
    output = one.loss(same, same, torch.zeros(6, 3), torch.zeros(6, 3), torch.arange(6) % 3)
    assert output.loss.item() == pytest.approx(output.trivial_loss, rel=1e-5)


def test_deepjdots_term_begins_at_zero_and_grows_as_danns():
    one, values = method("deepjdot"), []
    given = noise(6, 32), noise(6, 32, seed=1), noise(6, 3), torch.arange(6) % 3
    for one.progress in (0.0, 0.1, 0.9):
        values.append(one.alignment_loss(*given)[0].item())
    assert values[0] == 0 and values[1] / values[2] == pytest.approx(adaptation.growth(0.1) / adaptation.growth(0.9))


def test_without_alignment_the_loss_is_the_cross_entropy_of_the_source():
    one, batch = method("none").eval(), parts().__getitems__(range(6))
    output = one(**batch)
    given = joined.apart(batch)["source"]
    logits = one.model(pixel_values=one.views.whole(given["pixel_values"])).logits
    expected = torch.nn.functional.cross_entropy(logits, given["label"])
    torch.testing.assert_close(output.loss, expected)


# ---------------------------------------------------------------- labels of the target


class Unreadable:
    """In place of labels: whoever touches them fails."""

    def __getattr__(self, name):
        raise AssertionError(f"a label of the target was read: {name}")

    __getitem__ = __len__ = __iter__ = lambda self, *given: self.__getattr__("item")


def test_nothing_that_trains_can_read_a_label_of_the_target():
    """The target of a batch has no labels, also where its data set has them, and training never touches them."""
    one, data = tiny("deepjdot", weight=0.01), parts()
    data.parts["target"] = Labelled(data.parts["target"], Unreadable(), NAMES, "stripes").inputs
    batch = data.__getitems__(list(range(8)))
    assert not any("label" in name for name in joined.apart(batch)["target"])
    batch.pop("index")
    steps.standard(one.method, [batch], one.optimizers(one.method), accelerator(), 1.0)


def test_the_training_part_of_a_target_is_read_without_its_labels(tmp_path, monkeypatch):
    import datasets

    PartialState(cpu=USE_CPU)
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    rows = sources.load(tiny_encoders.images(tmp_path / "data"))
    (tmp_path / "bare").mkdir()
    rows["train"].remove_columns("label").to_parquet(tmp_path / "bare" / "train.parquet")
    rows["test"].to_parquet(tmp_path / "bare" / "test.parquet")
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    bare = labelled.unlabelled(str(tmp_path / "bare"), "image", processor)
    whole = labelled.unlabelled(str(tmp_path / "data"), "image", processor)
    assert torch.equal(bare.pixels, whole.pixels) and set(whole.__getitems__([0])) == {"pixel_values", "key", "index"}
    test = labelled.test_data(str(tmp_path / "bare"), "image", processor, ["blue", "red"])
    assert [test.names[i] for i in test.label] == rows["test"]["label"]
    with pytest.raises(BadInput, match="its label 'red' is none of blue, green, the source's classes"):
        labelled.test_data(str(tmp_path / "bare"), "image", processor, ["blue", "green"])
    assert isinstance(rows["train"], datasets.Dataset)


# ---------------------------------------------------------------- classifiers


def test_the_classifier_around_an_encoder_has_its_features():
    encoder = resnet().eval()
    model = classifiers.around(encoder, "image", NAMES).eval()
    pixels = noise(2, 3, 32, 32)
    features, logits = classifiers.features_and_logits(model, pixel_values=pixels)
    torch.testing.assert_close(features, encoder(pixels).pooler_output.flatten(1))
    torch.testing.assert_close(logits, model(pixels).logits)
    assert model.config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize(("kind", "modality"), [("bert", "text"), ("wav2vec", "audio"), ("vit", "image")])
def test_encoders_of_each_modality_become_classifiers(kind, modality, tmp_path):
    import transformers

    encoder = transformers.AutoModel.from_pretrained(getattr(tiny_encoders, kind)(tmp_path))
    model = classifiers.around(encoder, modality, NAMES)
    name = next(name for name, _ in encoder.named_parameters() if name.endswith("weight"))
    assert torch.equal(model.base_model.state_dict()[name], encoder.state_dict()[name])
    assert classifiers.head(model).out_features == 3


def test_an_encoder_without_a_classifier_is_refused():
    from transformers import CLIPTextConfig, CLIPTextModel

    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(BadInput, match="CLIPTextModel is no part of any AutoModelForSequenceClassification"):
        classifiers.around(encoder, "text", NAMES)
