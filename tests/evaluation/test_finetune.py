"""Fine-tuning: every layer at its own rate, frozen ones untouched, and better than chance on what can be learned."""

from types import SimpleNamespace

import pytest
import tiny_encoders
import torch
from accelerate import PartialState

from mmssl.data import labelled
from mmssl.evaluation import encoder as encoders
from mmssl.evaluation import finetune as tuning

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
    rows = torch.arange(len(train))
    predicted = tuning.finetune(
        made.encoder, train, rows, test, steps=25, batch_size=16, learning_rate=1e-2, layer_decay=0.75, use_cpu=True
    )
    assert (predicted == test.label).float().mean() > 0.8
    assert all(torch.equal(value, before[name]) for name, value in made.encoder.state_dict().items())


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
