import json
import logging
import shutil

import pytest
import tiny_clip
import torch
from safetensors.torch import load_file, save_file

from mmssl.errors import BadInput
from mmssl.evaluation.downstream import encoder
from mmssl.evaluation.features import ImageTextEncoder
from mmssl.methods import causal_lm, char_rnn, cpc, mae
from mmssl.models import pretrained, text_encoders, towers


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_clip.export(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def directory(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def config(directory, change):
    file = directory / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def wider(settings):
    settings["text_config"]["hidden_size"] = 128
    return settings


def deeper(settings):
    settings["vision_config"]["num_hidden_layers"] = 2
    return settings


def cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


def as_pickle(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


DAMAGE = {
    "weights cut off": (lambda d: cut(d / "model.safetensors", 5000), "model.safetensors is cut off or damaged"),
    "weights empty": (lambda d: cut(d / "model.safetensors", 0), "model.safetensors is cut off or damaged"),
    "weights missing": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
    "weights in a pickle": (as_pickle, "model.safetensors"),
    "config of BERT": (lambda d: config(d, lambda c: {"model_type": "bert"}), "do not match the BertModel"),
    "config of a wider model": (lambda d: config(d, wider), "missing or have another shape"),
    "config of a deeper model": (lambda d: config(d, deeper), "missing or have another shape"),
    "config of nothing known": (lambda d: config(d, lambda c: {"model_type": "unheard"}), "unheard"),
    "config cut off": (lambda d: cut(d / "config.json", 40), "not a valid JSON file"),
    "tokenizer missing": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer has no vocabulary"),
    "tokenizer cut off": (lambda d: cut(d / "tokenizer.json", 1000), "JSON files is cut off"),
    "processor missing": (lambda d: (d / "processor_config.json").unlink(), "image processor"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_directory_is_refused_in_one_sentence_that_names_it(directory, what):
    damage, sentence = DAMAGE[what]
    damage(directory)
    with pytest.raises(BadInput, match=sentence) as caught:
        pretrained.load(str(directory))
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipe_and_evaluation_both_refuse_a_damaged_directory(directory):
    cut(directory / "model.safetensors", 5000)
    for load in (towers.from_pretrained, ImageTextEncoder):
        with pytest.raises(BadInput, match="cut off"):
            load(str(directory))


def test_heads_that_a_class_does_not_use_are_not_reported(directory, caplog):
    weights = load_file(directory / "model.safetensors")
    save_file(weights | {"head.weight": torch.zeros(2)}, directory / "model.safetensors", metadata={"format": "pt"})
    logging.getLogger("transformers").addHandler(caplog.handler)
    pretrained.load(str(directory))
    assert caplog.text == ""


def test_weights_of_another_precision_load_as_fp32(directory):
    weights = load_file(directory / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in weights.items()}, directory / "model.safetensors", {"format": "pt"})
    model, _ = pretrained.load(str(directory))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


READERS = {
    "clip": towers.from_pretrained,
    "towers": lambda name: towers.from_towers(name, name),
    "mae": mae.from_pretrained,
    "bert": lambda name: text_encoders.from_pretrained(name, 16),
    "tokenizer": lambda name: text_encoders.load_tokenizer(name, 16),
    "causal_lm": lambda name: causal_lm.from_pretrained(name, 16),
    "char_rnn": lambda name: char_rnn.from_pretrained(name, False),
    "cpc": lambda name: cpc.from_pretrained(name, False, "cpc_text"),
    "encoder": encoder.load,
    "image_text": ImageTextEncoder,
}


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_runs_code_of_a_checkpoint_or_asks_whether_it_may(directory, reader, monkeypatch):
    (directory / "own.py").write_text(f"open({str(directory / 'it_ran')!r}, 'w')\nclass Own: ...\n")
    classes = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"), "own.Own")
    own = {"auto_map": classes | {"AutoTokenizer": ["own.Own", "own.Own"]}}
    config(directory, lambda c: {"model_type": "own"} | own)
    (directory / "tokenizer_config.json").write_text(json.dumps(own))
    asked = []
    monkeypatch.setattr("builtins.input", asked.append)
    with pytest.raises(BadInput):
        READERS[reader](str(directory))
    assert not asked and not (directory / "it_ran").exists()


@pytest.mark.parametrize("reader", [name for name in READERS if name != "tokenizer"])
def test_no_reader_takes_weights_from_a_pickle(directory, reader, monkeypatch):
    as_pickle(directory)
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("a pickle was read"))
    with pytest.raises(BadInput):
        READERS[reader](str(directory))


def test_code_in_a_checkpoint_runs_only_where_that_is_asked_for(directory):
    (directory / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import CLIPConfig, CLIPModel\n"
        f"Path({str(directory / 'it_ran')!r}).touch()\n"
        "class OwnConfig(CLIPConfig):\n    model_type = 'own'\n"
        "class Own(CLIPModel):\n    config_class = OwnConfig\n"
    )
    own = {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own"}, "model_type": "own"}
    config(directory, lambda c: c | own)
    with pytest.raises(BadInput, match="--trust_remote_code"):
        pretrained.load(str(directory))
    assert not (directory / "it_ran").exists()
    model, _ = pretrained.load(str(directory), trust_remote_code=True)
    assert type(model).__name__ == "Own" and (directory / "it_ran").exists()
