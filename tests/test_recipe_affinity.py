"""The affinity recipe judges what has not been judged, reads what has, continues, and refuses in one sentence."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import tiny_encoders
from accelerate import PartialState

from mmssl.errors import BadInput
from mmssl.evaluation.downstream import transfer, transfer_table

RECIPE = Path(__file__).parents[1] / "recipes" / "affinity.py"


@pytest.fixture(scope="module")
def recipe():
    PartialState(cpu=True)
    return runpy.run_path(str(RECIPE), run_name="affinity")


@pytest.fixture
def made(tmp_path) -> dict:
    encoders = [tiny_encoders.vit(tmp_path / name) for name in ("one", "other")]
    tasks = [tiny_encoders.images(tmp_path / "red", 90), f"{tiny_encoders.images(tmp_path / 'blue', 90)}#label"]
    return {"encoders": encoders, "tasks": tasks, "output_dir": str(tmp_path / "out"), "labels": "5", "seeds": 2}


def run(recipe, **flags) -> dict:
    recipe["main"](recipe["AffinityArgs"](use_cpu=True, budget=2, **flags))
    return json.loads(Path(flags["output_dir"], "affinity.json").read_text())


def test_every_pair_is_judged_once_and_a_second_call_reads_it(recipe, made, monkeypatch, capsys):
    found = run(recipe, **made)
    said = capsys.readouterr().out
    assert "budget 2: " in said and "chosen by each seed alone: 0: " in said and "blue#label" in said
    assert [len(row) for row in found["affinities"]] == [2, 2] and len(found["choices"]) == 2
    assert found["accuracy"].keys() == {"one", "other", transfer_table.UNTRAINED, transfer_table.CHANCE}
    for column in zip(*found["affinities"], strict=True):
        assert column == pytest.approx([0.5, 0.5])  # the two are copies of each other
    assert Path(made["output_dir"], "affinity.png").stat().st_size > 5000
    monkeypatch.setattr(transfer, "Transfer", None)  # nothing can be judged now
    again = run(recipe, **made)
    assert again["affinities"] == found["affinities"] and again["accuracy"] == found["accuracy"]
    elsewhere = made | {"output_dir": made["output_dir"] + "2"}
    assert run(recipe, results=[made["output_dir"]], **elsewhere)["affinities"] == found["affinities"]


def test_results_of_other_labels_and_of_the_encoders_in_another_order_are_kept_side_by_side(recipe, made):
    for flags in ({}, {"labels": "6"}, {"encoders": made["encoders"][::-1]}):
        run(recipe, **made | flags)
    found = [json.loads(file.read_text()) for file in Path(made["output_dir"]).rglob("*red/*/results.json")]
    kinds = [(each["args"]["labels"][0], each["args"]["baselines"] != ["none"]) for each in found]
    assert sorted(kinds) == [("5", False), ("5", True), ("5", True), ("6", False), ("6", True)]


def test_results_of_other_flags_or_older_weights_are_not_read(recipe, made):
    run(recipe, **made)
    flags = {"model_name_or_path": made["encoders"][0], "dataset": made["tasks"][0], "mode": ["linear"], "seeds": 2}
    wanted = runpy.run_path(str(RECIPE.parent / "transfer.py"), run_name="transfer")["TransferArgs"]
    file = next(Path(made["output_dir"]).rglob("*one/*red/*/results.json"))
    asked = wanted(labels=["5"], baselines=["untrained", "chance"], **flags)
    assert recipe["holds"](file.parent, asked)
    assert not recipe["holds"](file.parent, wanted(labels=["4"], baselines=["none"], **flags))
    Path(made["encoders"][0], "model.safetensors").touch()
    assert not recipe["holds"](file.parent, asked)
    file.write_text("{")
    assert not recipe["holds"](file.parent, asked)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"encoders": ["a"]}, "--encoders a: give two or more, to compare them"),
        ({"encoders": ["a", "a"]}, "--encoders a: given twice"),
        ({"tasks": ["digits", "digits"]}, "--tasks digits: given twice"),
    ],
)
def test_it_refuses_before_it_computes(recipe, flags, said):
    with pytest.raises(BadInput, match=said):
        recipe["AffinityArgs"](**flags)
