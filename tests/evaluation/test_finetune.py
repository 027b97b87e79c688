"""Fine-tuning: every layer at its own rate, frozen ones untouched, and better than chance on what can be learned."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_encoders
import torch
from accelerate import PartialState
from transformers import AutoModel, ConvNextConfig, Wav2Vec2Config

from mmssl.data import labelled
from mmssl.evaluation.downstream import encoder as encoders
from mmssl.evaluation.downstream import finetune as tuning
from mmssl.evaluation.downstream import layer_transfer, linear_probe

DATA = {"vit": "images", "bert": "texts", "wav2vec": "sounds"}


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="module", params=DATA)
def made(request, tmp_path_factory):
    PartialState(cpu=True)
    place = tmp_path_factory.mktemp(request.param)
    encoder = encoders.load(getattr(tiny_encoders, request.param)(place / "model"))
    data = getattr(tiny_encoders, DATA[request.param])(place / "data")
    return SimpleNamespace(encoder=encoder, data=data)


def test_fine_tuning_learns_what_a_class_is_and_leaves_the_encoder_as_it_was(made):
    train, test = labelled.load(made.data, made.encoder.modality, made.encoder.processor)
    before = {name: value.clone() for name, value in made.encoder.state_dict().items()}
    given = {"steps": 25, "batch_size": 16, "learning_rate": 1e-2, "layer_decay": 0.75, "use_cpu": True}
    predicted = tuning.finetune(made.encoder, train, test, **given)
    assert (predicted == test.label).float().mean() > 0.8
    assert all(torch.equal(value, before[name]) for name, value in made.encoder.state_dict().items())


@pytest.mark.parametrize("linear_probing", [True, False])
def test_it_begins_at_the_linear_probe_or_undecided(made, linear_probing):
    train, test = labelled.load(made.data, made.encoder.modality, made.encoder.processor)
    train.label = torch.arange(len(train)) % 3  # nothing to do with what is seen: whoever knows them has fitted them
    train.names = ["0", "1", "2"]
    given = {"steps": 1, "batch_size": 16, "learning_rate": 1e-12, "use_cpu": True}
    predicted = tuning.finetune(made.encoder, train, test, linear_probing=linear_probing, **given)
    [x], [z] = (encoders.features(made.encoder, part, cached=False) for part in (train, test))
    probed = linear_probe.linear_probe(x.numpy(), train.label.numpy(), z.numpy())
    assert np.array_equal(predicted.numpy(), probed) == linear_probing


def test_the_probe_fills_the_rows_of_the_classes_that_it_knows():
    rows = np.random.default_rng(0).normal(size=(20, 8))
    probe = linear_probe.fit(rows, 2 * (np.arange(20) % 2))
    encoder = torch.nn.Module()
    encoder.model = torch.nn.Linear(1, 1)
    classifier = tuning.Classifier(encoder, 8, 3, probe=probe)
    expected = probe[1].coef_[0] / 2
    np.testing.assert_allclose(classifier.head.weight[[0, 2]].detach(), [-expected, expected], rtol=1e-5)


@pytest.mark.parametrize("names", [2, 3])
def test_the_head_begins_as_the_linear_probe_of_these_very_rows(made, names):
    train, test = labelled.load(made.data, made.encoder.modality, made.encoder.processor)
    train.label = torch.arange(len(train)) % names
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: len(train) // 2]
    some = train.select(rows)
    assert torch.equal(some.label, train.label[rows]) and some.identity != train.identity
    [x], [z] = (encoders.features(made.encoder, part, cached=False) for part in (some, test))
    theirs = train.inputs.__getitems__(rows[:3].tolist())
    assert all(torch.equal(value, theirs[name]) for name, value in some.inputs.__getitems__([0, 1, 2]).items())
    probe = linear_probe.fit(x.numpy(), some.label.numpy())
    classifier = tuning.Classifier(made.encoder, x.shape[1], names, probe=probe)
    assert np.array_equal(tuning.predict(classifier, test, 64).numpy(), probe.predict(z.numpy()))
    with torch.no_grad():
        likely = classifier.logits(**test.inputs.__getitems__(range(len(test)))).softmax(1)
    np.testing.assert_allclose(likely.numpy(), probe.predict_proba(z.numpy()), atol=1e-5)


def test_each_layer_learns_at_its_own_rate_and_every_parameter_at_one(made):
    model = made.encoder.model
    classifier = tuning.Classifier(made.encoder, 32, 3)
    rates = {
        id(parameter): group["lr"]
        for group in tuning.groups(classifier, 1.0, 0.5, 0.1)
        for parameter in group["params"]
    }
    assert set(rates) == {id(p) for p in classifier.parameters() if p.requires_grad}
    assert tuning.depth(model) == 2
    assert rates[id(classifier.head.weight)] == 1.0
    by_layer = {tuning.layer_of(name, model): rates[id(p)] for name, p in model.named_parameters() if id(p) in rates}
    # the head is 4: after the layers 3, layers 2 and 1, embeddings 0
    assert all(rate == 0.5 ** (4 - layer) for layer, rate in by_layer.items()) and {0, 1, 2} <= set(by_layer)


def test_biases_and_norms_do_not_decay(made):
    for group in tuning.groups(tuning.Classifier(made.encoder, 32, 3), 1.0, 0.5, 0.1):
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}


def test_frozen_layers_are_the_first_ones(tmp_path):
    encoder = encoders.load(tiny_encoders.vit(tmp_path))
    tuning.Classifier(encoder, 32, 2, frozen=2)
    frozen = {name for name, p in encoder.model.named_parameters() if not p.requires_grad}
    expected = {n for n, _ in encoder.model.named_parameters() if n.startswith(("embeddings", "layers.0"))}
    assert frozen == expected


def test_frozen_layers_keep_the_statistics_of_their_batch_norms(tmp_path):
    classifier = tuning.Classifier(encoders.load(tiny_encoders.resnet(tmp_path)), 32, 2, frozen=2).train()
    before = {name: value.clone() for name, value in classifier.encoder.model.state_dict().items()}
    classifier.encoder.model(torch.randn(4, 3, 16, 16))
    of_statistics = [name for name in before if "running" in name]
    moved = {
        name for name in of_statistics if not torch.equal(classifier.encoder.model.state_dict()[name], before[name])
    }
    layers = {name: tuning.layer_of(name, classifier.encoder.model) for name in of_statistics}
    assert moved == {name for name, layer in layers.items() if layer >= 2} and {*layers.values()} == {0, 1, 2}


def test_the_lowest_layers_of_one_network_and_the_others_of_another(tmp_path):
    ours = encoders.load(tiny_encoders.resnet(tmp_path))
    for name, value in ours.model.state_dict().items():  # batch norms that have seen data
        if "running" in name:
            value.add_(0.5)
    upper = ours.untrained(1)
    one, other = ours.model.state_dict(), upper.model.state_dict()
    for layers in range(5):
        for name, value in layer_transfer.spliced(ours, upper, layers).model.state_dict().items():
            assert torch.equal(value, (one if tuning.layer_of(name, ours.model) < layers else other)[name])


@pytest.mark.parametrize(
    ("config", "depth", "numbers"),
    [
        (
            ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 9, 1]),
            4,
            {
                "embeddings.patch_embeddings.weight": 0, "encoder.stages.2.layers.5.pwconv1.weight": 3,
                "layernorm.weight": 5,
            },
        ),
        (
            Wav2Vec2Config(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(8,) * 3,
                conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3), num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2, do_stable_layer_norm=True, feat_extract_norm="layer",
            ),
            2,
            {
                "feature_extractor.conv_layers.2.conv.weight": 0,
                "encoder.layers.1.feed_forward.output_dense.weight": 2, "encoder.layer_norm.weight": 3,
            },
        ),
    ],
    ids=["stages", "speech"],
)  # fmt: skip
def test_layers_are_the_stages_or_the_transformers_own(config, depth, numbers):
    model = AutoModel.from_config(config)
    assert tuning.depth(model) == depth
    assert {name: tuning.layer_of(name, model) for name in numbers} == numbers
    assert {*numbers} <= {*model.state_dict()}


def test_layer_transfer_trains_what_is_not_frozen(made, monkeypatch):
    """With all layers frozen, the donor's encoder is left as it was; fine-tuned, it is not. The network from scratch is
    the donor of the controls."""
    train, test = labelled.load(made.data, made.encoder.modality, made.encoder.processor)
    fitted, fit = [], layer_transfer.fit

    def spy(encoder, *given, **how):
        fitted.append(fit(encoder, *given, **how))
        return fitted[-1]

    monkeypatch.setattr(layer_transfer, "fit", spy)
    donors = {"ours": (made.encoder, layer_transfer.WAYS), "untrained": (made.encoder.untrained(7), ("frozen",))}
    how = {"steps": 2, "batch_size": 8, "learning_rate": 1e-2, "use_cpu": True}
    found = [each[:3] for each in layer_transfer.layer_transfer(donors, "labels", train, test, 0, **how)]
    names = [
        ("ours", "frozen"),
        ("ours", "fine-tuned"),
        ("untrained", "frozen"),
        ("labels", "frozen"),
        ("labels", "fine-tuned"),
    ]
    assert found == [(0, "fine-tuned", "labels"), *((n, way, donor) for n in (1, 2, 3) for donor, way in names)]
    kept, tuned, before, ours, theirs = (fitted[i].encoder.model.state_dict() for i in (-5, -4, -3, -2, -1))
    scratch, given = fitted[0].encoder.model.state_dict(), made.encoder.model.state_dict()
    assert all(torch.equal(kept[name], given[name]) and torch.equal(ours[name], scratch[name]) for name in given)
    assert any(not torch.equal(tuned[name], given[name]) for name in given)
    assert any(not torch.equal(theirs[name], scratch[name]) for name in given)
    assert any(not torch.equal(before[name], given[name]) for name in given)


def test_early_stopping_keeps_the_best_weights_and_ends_a_run_that_gets_no_better(made, monkeypatch):
    """With a rate that destroys the probe at once, the probe is the best; the run ends after PATIENCE evaluations."""
    train, test = labelled.load(made.data, made.encoder.modality, made.encoder.processor)
    train = train.select(torch.arange(len(train)).repeat(3))  # every class has enough labels
    monkeypatch.setattr(tuning, "FEWEST", 1)
    steps, inner = [], tuning.EarlyStopping.__call__
    monkeypatch.setattr(
        tuning.EarlyStopping, "__call__", lambda self, one: (steps.append(int(one.step)), inner(self, one))[1]
    )
    given = {"steps": 200, "batch_size": 16, "learning_rate": 10.0, "linear_probing": True, "use_cpu": True}
    predicted = tuning.finetune(made.encoder, train, test, early_stopping=True, **given)
    assert steps == [0, 10, 20, 30, 40, 50][: len(steps)] and len(steps) <= 1 + 2 * tuning.PATIENCE < tuning.EVALUATIONS
    kept, _ = tuning._held_out(train, 0)
    [x], [z] = (encoders.features(made.encoder, part, cached=False) for part in (kept, test))
    probe = linear_probe.linear_probe(x.numpy(), kept.label.numpy(), z.numpy())
    assert np.array_equal(predicted.numpy(), probe)


def test_labels_for_early_stopping_are_a_tenth_of_each_class_and_not_trained_on(made):
    train, _ = labelled.load(made.data, made.encoder.modality, made.encoder.processor)
    label = torch.arange(300) % 3
    kept, held = tuning._held_out(labelled.Labelled(train.inputs, label, ["0", "1", "2"], "many"), 0)
    assert held.label.bincount().tolist() == [10] * 3 and kept.label.bincount().tolist() == [90] * 3
    assert not set(kept.inputs.indices) & set(held.inputs.indices)


def test_few_labels_are_all_trained_on(made, monkeypatch):
    train, test = labelled.load(made.data, made.encoder.modality, made.encoder.processor)
    monkeypatch.setattr(tuning, "_held_out", None)  # it would fail
    given = {"steps": 1, "batch_size": 16, "learning_rate": 1e-3, "use_cpu": True, "early_stopping": True}
    assert len(tuning.finetune(made.encoder, train, test, **given)) == len(test)
    monkeypatch.setattr(tuning, "FEWEST", 1)
    rows = torch.cat([(train.label == c).nonzero()[:5, 0] for c in train.label.unique()])  # too few of each class
    assert len(tuning.finetune(made.encoder, train.select(rows), test, **given)) == len(test)
