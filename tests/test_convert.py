"""Pickled weights are converted to safetensors, and nothing in them is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_clip
import torch
from safetensors.torch import load_file

from mmssl.errors import BadInput
from mmssl.hub.convert import convert
from mmssl.models import pretrained

NAME = "pytorch_model.bin"


class Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place / "it_ran"), "w"))


@pytest.fixture
def weights(tmp_path):
    """Those of a checkpoint in tmp_path that has no weights in a file yet."""
    file = tiny_clip.export(tmp_path) / "model.safetensors"
    found = load_file(file)
    file.unlink()
    return found


def test_the_refusal_of_a_pickle_names_the_command_that_converts_it_and_that_command_works(weights, tmp_path):
    torch.save(weights, tmp_path / NAME)
    with pytest.raises(BadInput, match="pickle, which can run code") as refused:
        pretrained.load(str(tmp_path))
    command = str(refused.value).partition("with: ")[2].split()
    assert command[:3] == ["python", "-m", "mmssl.hub.convert"]
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "model.safetensors"), done.stderr
    model, _ = pretrained.load(str(tmp_path))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if name in weights)


def test_shards_and_tied_weights_load_as_they_were(weights, tmp_path):
    names = sorted(weights)
    weights["tied"] = weights[names[0]].view(-1)
    shards = {"pytorch_model-00001-of-00002.bin": [*names[:9], "tied"], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in shards.items():
        torch.save({name: weights[name] for name in part}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    written = convert(tmp_path, tmp_path)
    assert [file.name for file in written] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert torch.equal(load_file(written[0])["tied"], weights["tied"])
    model, _ = pretrained.load(str(tmp_path))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if name in weights)


def test_code_in_a_pickle_is_not_run_and_leaves_no_file(weights, tmp_path):
    torch.save(weights | {"more": Evil(tmp_path)}, tmp_path / NAME)
    with pytest.raises(BadInput, match="is not converted"):
        convert(tmp_path, tmp_path)
    assert not (tmp_path / "it_ran").exists() and not list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob(".convert*"))


def test_no_file_is_overwritten_and_an_index_leads_to_no_other_folder(weights, tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../other.bin"}}))
    with pytest.raises(BadInput, match="not a file in that directory"):
        convert(tmp_path, tmp_path)
    torch.save(weights, tmp_path / NAME)
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(BadInput, match="already exists and is not overwritten"):
        convert(tmp_path, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_a_file_of_other_things_than_tensors_by_name_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / NAME)
    with pytest.raises(BadInput, match="other things than tensors, 'state_dict' first"):
        convert(tmp_path, tmp_path)
