"""The transfer recipe end to end for each modality, what it writes down, and what it refuses in one sentence."""

import json
import re
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import tiny_encoders
import yaml
from accelerate import PartialState
from PIL import Image
from processes import Processes

from mmssl.arguments import command
from mmssl.data.labelled import Labelled
from mmssl.errors import BadInput
from mmssl.evaluation.downstream import transfer as judging
from mmssl.evaluation.downstream import transfer_table
from mmssl.hub import card
from mmssl.training.output_dir import OutputDir

RECIPE = Path(__file__).parents[2] / "recipes" / "transfer.py"
DATA = {"vit": "images", "bert": "texts", "wav2vec": "sounds", "clip": "images"}
RAW = {"images": "raw pixels", "texts": "tf-idf", "sounds": "log-mel"}
CARD = "---\nlibrary_name: transformers\n---\n\n# tiny\n\nWhat it is.\n\n## Limits\n\nMany.\n"


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE))


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path_factory.getbasetemp() / "home"))


def judge(recipe, directory, data, output, *flags) -> dict:
    fields = {"model_name_or_path": directory, "dataset": data, "output_dir": str(output), "use_cpu": True}
    judging.main(recipe["TransferArgs"](**fields, **dict(flags)))
    return json.loads((output / "results.json").read_text())["results"]


@pytest.mark.parametrize("name", DATA)
def test_every_probe_stands_beside_raw_features_untrained_and_chance(name, recipe, tmp_path, capsys):
    directory = getattr(tiny_encoders, name)(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(CARD)
    data = getattr(tiny_encoders, DATA[name])(tmp_path / "data")
    flags = {
        "mode": ["knn", "linear", "few_shot"],
        "labels": ["3", "100%"],
        "seeds": 2,
        "ways": 2,
        "shots": [1, 2],
        "episodes": 20,
    }
    results = judge(recipe, directory, data, tmp_path / "out", *flags.items())
    columns = {transfer_table.OURS, transfer_table.UNTRAINED, RAW[DATA[name]], transfer_table.CHANCE}
    figures = {row: values for row, values in results.items() if "confidence" not in row}
    assert len(figures) == 6 and all(set(values) == columns for values in figures.values())
    assert all(0 <= value <= 100 for values in figures.values() for of_seed in values.values() for value in of_seed)
    assert len(results["linear, 3 per class"][transfer_table.OURS]) == 2
    assert results["linear, 100% of the labels"][RAW[DATA[name]]][0] > 80  # the class can be told from the raw input
    said = capsys.readouterr().out
    assert RAW[DATA[name]] in said and "linear, 3 per class" in said
    text = (tmp_path / "model" / "README.md").read_text()
    assert (
        "## Transfer to data: knn, linear, few_shot\n" in text
        and "## Limits" in text
        and "| linear, 3 per class |" in text
    )
    measured = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]["metrics"]
    assert {m["name"] for m in measured} == set(figures)
    assert (tmp_path / "model" / "figures" / "transfer_data_linear.png").exists()


def test_a_second_run_replaces_its_section_of_the_card(recipe, tmp_path):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    (tmp_path / "model" / "README.md").write_text(CARD)
    flags = {"mode": ["knn"], "labels": ["100%"], "seeds": 1, "layers": "all", "baselines": ["none"]}
    results = judge(recipe, directory, data, tmp_path / "out", *flags.items())
    assert {f"k-NN, 100% of the labels, layer {i}" for i in range(3)} <= set(results)
    once = (tmp_path / "model" / "README.md").read_text()
    judge(recipe, directory, data, tmp_path / "out", *flags.items())
    assert (tmp_path / "model" / "README.md").read_text() == once
    assert (tmp_path / "model" / "figures" / "layers_data_knn_100.png").exists()


def test_results_of_other_flags_are_not_replaced_and_this_is_said_before_anything_is_computed(
    recipe, tmp_path, monkeypatch
):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    linear = {"mode": ["linear"], "labels": ["5"], "seeds": 2}
    judge(recipe, directory, data, tmp_path / "out", *linear.items())
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in (judging.RESULTS, judging.LOSSES)}
    for flags, said in (
        ({"mode": ["knn"]}, "--mode linear, not knn"),
        ({"labels": ["6"], "layers": "all"}, "--labels 5, not 6; --layers last, not all"),
        ({"seeds": 1}, "--seeds 2, not 1"),
        ({"baselines": ["none"]}, "--baselines untrained raw chance, not none"),
    ):
        with (
            monkeypatch.context() as patched,
            pytest.raises(BadInput, match=re.escape(f"out holds results with {said}: choose")),
        ):
            patched.setattr(judging, "Transfer", None)
            judge(recipe, directory, data, tmp_path / "out", *(linear | flags).items())
    assert kept == {name: (tmp_path / "out" / name).read_bytes() for name in kept}
    more = linear | {"mode": ["knn", "linear"], "labels": ["5", "6"]}  # computes again what is there
    assert len(judge(recipe, directory, data, tmp_path / "out", *more.items())) == 4


def test_fine_tuning_stands_beside_training_from_scratch(recipe, tmp_path):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    flags = {"mode": ["finetune"], "labels": ["10"], "seeds": 2, "max_steps": 3, "freeze_layers": 1}
    results = judge(recipe, directory, data, tmp_path / "out", *flags.items())
    (values,) = results.values()
    assert len(values[transfer_table.OURS]) == len(values[transfer_table.UNTRAINED]) == len(values["raw pixels"]) == 2
    assert transfer_table.CHANCE in values


def test_fine_tuning_sees_the_labels_it_is_allowed_and_no_others(recipe, tmp_path, monkeypatch):
    seen = []

    def spy(encoder, train_data, test_data, *, linear_probing=False, **given):
        seen.append((sorted(train_data.label.bincount().tolist()), linear_probing))
        return test_data.label

    monkeypatch.setattr(judging, "finetune", spy)
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    judge(recipe, directory, data, tmp_path / "out", ("mode", ["finetune"]), ("labels", ["5"]), ("seeds", 1))
    [(counts, ours), (again, scratch)] = seen
    assert counts == again == [5] * len(counts) and (ours, scratch) == (True, False)


def test_layer_transfer_has_a_row_for_each_number_of_layers_and_a_figure(recipe, tmp_path):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    flags = {"mode": ["layer_transfer"], "labels": ["10"], "seeds": 1, "max_steps": 2}
    results = judge(recipe, directory, data, tmp_path / "out", *flags.items())
    start = "layer transfer, 10 per class, "
    rows = {row.removeprefix(start): {*values} for row, values in results.items()}
    trained = {transfer_table.OURS, transfer_table.SUPERVISED}
    assert rows == {
        "fine-tuned, lowest 0": {transfer_table.SUPERVISED, transfer_table.CHANCE},
        **{f"frozen, lowest {i}": trained | {transfer_table.UNTRAINED} for i in (1, 2, 3)},
        **{f"fine-tuned, lowest {i}": trained for i in (1, 2, 3)},
    }
    assert (tmp_path / "out" / "layer_transfer_data_10_per_class.png").exists()


def test_overlap_is_said_and_written_on_the_card(recipe, tmp_path, capsys):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    (tmp_path / "model" / "README.md").write_text(CARD)
    train, test = (datasets.Dataset.from_parquet(f"{data}/{part}.parquet") for part in ("train", "test"))
    both = datasets.concatenate_datasets([test, train.select(range(3))])
    both.to_parquet(f"{data}/test.parquet")
    judge(recipe, directory, data, tmp_path / "out", ("mode", ["knn"]), ("seeds", 1))
    sentence = f"3 of {len(both)} test examples are also training examples"
    assert sentence in capsys.readouterr().out and sentence in (tmp_path / "model" / "README.md").read_text()


def test_classes_with_fewer_labels_than_asked_for_are_said(recipe, tmp_path, capsys):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    judge(recipe, directory, data, tmp_path / "out", ("mode", ["knn"]), ("labels", ["2", "50"]), ("seeds", 1))
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert said.startswith("warning: --labels 50: 2 of 2 classes have fewer training examples, ")
    judge(recipe, directory, data, tmp_path / "other", ("mode", ["knn"]), ("labels", ["1%"]), ("seeds", 1))
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert said.startswith("warning: --labels 1%: 2 of ") and "because every class keeps one" in said


def test_results_of_two_label_columns_stand_side_by_side_on_the_card(recipe, tmp_path):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    (tmp_path / "model" / "README.md").write_text(CARD)
    for part in ("train", "test"):
        rows = datasets.Dataset.from_parquet(f"{data}/{part}.parquet")
        rows = rows.add_column("half", [("a", "b")[i % 4 < 2] for i in range(len(rows))])
        rows.to_parquet(f"{data}/{part}.parquet")
    for column in ("label", "half"):
        flags = {"mode": ["knn"], "labels": ["50%", "100%"], "seeds": 1, "label_column": column}
        judge(recipe, directory, data, tmp_path / column, *flags.items())
    text = (tmp_path / "model" / "README.md").read_text()
    assert all(f"## Transfer to data, label_column {column}: knn" in text for column in ("label", "half"))
    names = [each["dataset"]["name"] for each in yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]]
    assert names == ["data, label_column label, transfer", "data, label_column half, transfer"]
    drawn = {file.name for file in (tmp_path / "model" / "figures").iterdir()}
    assert drawn == {f"transfer_data_label_column_{column}_knn.png" for column in ("label", "half")}


def test_two_processes_are_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(BadInput, match="an evaluation runs in one process: start it with python"):
        judging.main(recipe["TransferArgs"](output_dir=str(tmp_path / "out"), use_cpu=True))
    assert not (tmp_path / "out").exists()


def test_all_labels_are_probed_once_whatever_the_seeds():
    label = judging.torch.zeros(4, dtype=judging.torch.long)
    transfer = object.__new__(judging.Transfer)
    transfer.train = Labelled(None, label, ["a"], "")
    whole, part = judging.torch.arange(4), judging.torch.arange(2)
    assert len(transfer._distinct([whole, whole])) == 1 and len(transfer._distinct([part, part])) == 2


def test_fine_tuning_passes_ten_times_over_the_labels_but_takes_no_fewer_than_300_steps(recipe):
    transfer = object.__new__(judging.Transfer)
    transfer.args = recipe["TransferArgs"](mode=["finetune"])
    assert [transfer._how(labels)["steps"] for labels in (3, 1920, 6400, 20_000)] == [300, 300, 1000, 3125]
    transfer.args = recipe["TransferArgs"](mode=["finetune"], num_train_epochs=1, max_steps=7)
    assert transfer._how(6400)["steps"] == 7


def test_baselines_are_left_out_on_request(recipe, tmp_path):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    flags = {"mode": ["knn", "linear", "finetune"], "labels": ["5"], "seeds": 1, "max_steps": 2}
    results = judge(recipe, directory, data, tmp_path / "out", *flags.items(), ("baselines", ["none"]))
    assert len(results) == 3 and all(set(values) == {transfer_table.OURS} for values in results.values())


def test_a_section_is_added_to_a_card_and_what_was_there_stays(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    picture = tmp_path / "drawn.png"
    Image.new("RGB", (2, 2)).save(picture)
    card.add_results(tmp_path, "Transfer to a", "One.", {"linear": 51.234}, "user/a", {picture: "A picture."})
    card.add_results(tmp_path, "Transfer to b", "Two.", {"linear": 60.0}, "b", {})
    card.add_results(tmp_path, "Transfer to a", "Three.", {"linear": 52.0}, "user/a", {picture: "A picture."})
    text = (tmp_path / "README.md").read_text()
    assert "What it is." in text and "Two." in text and "Three." in text and "One." not in text
    results = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]
    found = {r["dataset"]["name"]: (r["dataset"]["type"], r["metrics"][0]["value"]) for r in results}
    assert found == {"a, transfer": ("user/a", 52.0), "b, transfer": ("custom", 60.0)}
    assert (tmp_path / "figures" / "drawn.png").exists()


def add_many(directory: Path, name: str) -> None:
    for i in range(15):
        card.add_results(directory, f"Transfer to {name} {i}", "Text.", {"linear": 50.0}, f"{name}_{i}", {})


def test_two_evaluations_that_write_to_one_card_at_once_lose_no_section(tmp_path):
    OutputDir(tmp_path).register(["README.md"])
    (tmp_path / "README.md").write_text(CARD)
    both = [Processes(add_many, tmp_path, name, log=tmp_path / f"{name}.txt") for name in ("one", "other")]
    assert [process.wait() for process in both] == [[0], [0]], [process.output for process in both]
    assert (tmp_path / "README.md").read_text().count("\n## Transfer to ") == 30


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--mode linaer", "invalid choice: 'linaer'"),
        ("--labels 200%", "--labels 200%: give a percentage of the training labels"),
        ("--seeds 0", "--seeds is 0; it must be 1 or more"),
        ("--ways 1", "--ways is 1; it must be 2 or more"),
        ("--mode finetune few_shot --ways 5", "only 2 classes have more than 5 test examples"),
        (
            "--learning_rate 1 --freeze_layers 2",
            "--learning_rate, --freeze_layers have no effect with --mode knn linear",
        ),
        ("--ways 3", "--ways has no effect with --mode knn linear"),
        ("--mode layer_transfer --layer_decay 0.5", "--layer_decay has no effect with --mode layer_transfer"),
        ("--mode finetune --layers all", "--layers has no effect with --mode finetune"),
        ("--mode few_shot --labels 5", "--labels has no effect with --mode few_shot, which draws episodes"),
        ("--hold_out label=red --held_out 5", "--held_out has no effect with --hold_out label=red"),
        ("--max_length 5", "--max_length has no effect with an encoder of images"),
        ("--pooling pooler", "2 are missing or have another shape, pooler.dense.bias first"),
        ("--label_column kind", "--label_column kind: the data has no such column, only image, label"),
        ("--dataset ./none", "--dataset ./none: no such file or folder"),
        ("--model_name_or_path ./none", "--model_name_or_path ./none"),
    ],
)
def test_transfer_refuses_in_one_sentence(flags, said, recipe, tmp_path, capsys, monkeypatch):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    if "--model" not in flags:
        flags += f" --model_name_or_path {directory}"
    if "--dataset" not in flags:
        flags += f" --dataset {data}"
    monkeypatch.setattr(
        sys, "argv", ["transfer.py", *flags.split(), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    )
    with pytest.raises(SystemExit) as ended:
        command(judging.main, recipe["TransferArgs"])
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(error) == 1 and said in error[0]


def test_the_interval_of_a_mean_is_that_of_students_t():
    found = transfer_table.intervals({"row": {"ours": [1.0, 2.0, 3.0], "one": [5.0], "same": [4.0, 4.0]}})
    half = 4.302653 / 3**0.5  # t of 2 degrees of freedom; a deviation of 1
    assert found == {"row": {"ours": pytest.approx([2 - half, 2 + half], rel=1e-5)}}
