"""After the last step nothing fails for want of a description: the weights come first, and what is unknown is said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import tiny_clip
import torch
import yaml
from accelerate import PartialState
from test_export import record, run_record
from transformers import CLIPModel

from mmssl.arguments import TrainArgs
from mmssl.errors import BadInput
from mmssl.evaluation.held_out import Evaluation
from mmssl.hub import card, export
from mmssl.method import Card
from mmssl.methods.clip import CLIP
from mmssl.pretrain import pretrain
from mmssl.training import optim


@pytest.fixture(autouse=True)
def one_process():
    PartialState(cpu=True)


class Pairs(torch.utils.data.Dataset):
    """Two batches of what tiny_clip reads."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        encoded = tiny_clip.tokenizer()(tiny_clip.TEXTS[:1] * len(indices), padding=True, return_tensors="pt")
        pixels = tiny_clip.EXAMPLE["images"][[index % 3 for index in indices]]
        rows = torch.tensor(indices)
        text = {name: encoded[name][:, None] for name in ("input_ids", "attention_mask")}
        return {"index": rows, "pixel_values": pixels, "key": rows, **text}


class Fails(Evaluation):
    """Every part of it fails, once the training has ended."""

    units = "A score."

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, method) -> dict[str, float]:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("no score\nand more lines")
        return {"score": 1.0}

    def baselines(self, method) -> dict[str, dict[str, float]]:
        raise BadInput("no baselines")

    def draw(self, method, directory, results) -> dict[str, str]:
        raise KeyError("trained")

    def text(self, method) -> str:
        raise IndexError("no text")


class Works(Evaluation):
    """What a run without a fault shows."""

    units = "A score."

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, method) -> dict[str, float]:
        return {"score": 1.0}

    def baselines(self, method) -> dict[str, dict[str, float]]:
        CLIPModel.from_pretrained(self.directory)  # the weights are there before anything is described
        return {"chance": {"score": torch.tensor(0.5), "of_chance": 0.25}}

    def draw(self, method, directory, results) -> dict[str, str]:
        directory.mkdir(parents=True)
        (directory / "drawn.png").write_bytes(b"picture")
        return {"drawn.png": "What was drawn."}

    def text(self, method) -> str:
        return "What it says."


def trained(directory, evaluation: Evaluation, snippets: dict[str, str] | None = None, **flags) -> TrainArgs:
    method, processor = tiny_clip.build()
    if snippets is not None:
        method.__class__ = type("Snippets", (CLIP,), {"card": Card(snippets=snippets, fill=True)})
    args = TrainArgs(
        output_dir=str(directory), dataset="drawings", max_steps=2, per_device_train_batch_size=4, use_cpu=True,
        save_steps=0, bf16="no", **flags,
    )  # fmt: skip
    optimizer = optim.from_args(method, args)
    pretrain(
        args, method, processor, Pairs(), [optimizer], evaluation, trained_on="8 pairs", held_out="none",
        example=tiny_clip.EXAMPLE,
    )  # fmt: skip
    return args


def left(directory) -> tuple[dict, str, dict]:
    """metrics.json, the card's text and its metadata; the weights load."""
    CLIPModel.from_pretrained(directory)
    text = (directory / "README.md").read_text()
    return json.loads((directory / "metrics.json").read_text()), text, yaml.safe_load(text.split("---")[1])


def failures(metrics: dict) -> list[str]:
    return [warning for warning in metrics["warnings"] if "failed" in warning]


def test_a_run_without_a_fault_leaves_weights_that_load_then_everything_else(tmp_path):
    trained(tmp_path / "run", Works(tmp_path / "run"))
    metrics, text, _ = left(tmp_path / "run")
    assert failures(metrics) == []
    assert metrics["results"] == {
        "trained": {"score": 1.0}, "untrained": {"score": 1.0}, "chance": {"score": 0.5, "of_chance": 0.25}
    }  # fmt: skip
    assert "What it says." in text and "figures/drawn.png" in text and "figures/loss.png" in text
    assert (tmp_path / "run" / "figures" / "example.png").exists()


def test_what_fails_after_the_last_step_costs_its_part_of_the_description_alone(tmp_path, capsys, monkeypatch):
    snippets = {"Good": "print({text})", "Bad": "print({text[99]})", "Worse": "print({nothing}", "Broken": "{"}
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    trained(tmp_path / "run", Fails(), snippets)
    metrics, text, _ = left(tmp_path / "run")
    said = [
        "the last evaluation failed: RuntimeError: no score",
        "the baselines failed: BadInput: no baselines",
        "a figure failed: KeyError: 'trained'",
        "the text of the evaluation failed: IndexError: no text",
        "the snippet 'Bad' failed: IndexError",
        "the snippet 'Worse' failed: ",
        "the snippet 'Broken' failed: ValueError",
        "the loss curve failed: ModuleNotFoundError",
    ]
    told = capsys.readouterr().err
    assert len(failures(metrics)) == len(said)
    for sentence, warning in zip(said, failures(metrics), strict=True):
        assert warning.startswith(sentence) and told.count(f"warning: {sentence}") == 1
    assert "The run warned: the baselines failed: BadInput: no baselines" in text
    assert "Good:" in text and repr(tiny_clip.TEXTS) in text and not {"Bad:", "Worse:", "Broken:"} & set(text.split())
    assert metrics["results"] == {"trained": {}, "untrained": {"score": 1.0}} and "loss.png" not in text
    assert "| Score | – | 1.00 |" in text


def test_an_evaluation_that_fails_before_the_training_stops_it(tmp_path):
    evaluation = Fails()
    evaluation.calls = 1
    with pytest.raises(RuntimeError, match="no score"):
        trained(tmp_path / "run", evaluation)
    assert not (tmp_path / "run").exists()


def test_a_card_that_cannot_be_written_is_a_short_one(tmp_path):
    method, processor = tiny_clip.build()
    summary, args = run_record(tmp_path)

    class Unspeakable:
        def __str__(self):
            raise RuntimeError("no words")

    export.finish(
        method, processor, method.model, tiny_clip.EXAMPLE, lambda: record(title=Unspeakable()), summary, args, "chance"
    )
    _, text, front_matter = left(tmp_path)
    assert "No more is known of this model: the model card failed: RuntimeError: no words" in text
    assert "mmssl" in front_matter["tags"]


def test_what_is_unknown_of_software_hardware_and_command_is_written_as_unknown(tmp_path, monkeypatch):
    summary, args = run_record(tmp_path)

    def not_installed(name):
        raise metadata.PackageNotFoundError(name)

    def refused(*arguments, **options):
        raise OSError("not here")

    monkeypatch.setattr(metadata, "version", not_installed)
    monkeypatch.setattr(torch.cpu, "get_capabilities", refused)
    monkeypatch.setattr(subprocess, "run", refused)
    monkeypatch.setattr(sys, "argv", [])
    card.write_card(tmp_path, record(), summary, args)
    card.write_metrics(tmp_path, {}, summary, args)
    text, metrics = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "metrics.json").read_text())
    assert "- Hardware: unknown" in text and "torch unknown" in text and "```\nunknown\n```" in text
    assert metrics["command"] == metrics["hardware"] == metrics["software"]["datasets"] == "unknown"
    assert re.fullmatch(r"\d+\.\d+\.\d+", metrics["software"]["mmssl"])  # it knows its own, installed or not


@pytest.mark.parametrize("arguments", [[], [""], ["-c"], [None], ["a\0b", "\udcff"]])
def test_any_command_line_has_words(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    assert isinstance(card.command_line(), str) and card.command_line()


def test_a_command_from_a_folder_that_is_gone_is_unknown(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    (tmp_path / "gone").rmdir()
    try:
        assert card.command_line() == "unknown"
    finally:
        os.chdir(tmp_path)


def test_the_directory_of_the_run_gives_its_name_also_as_a_dot(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert card.title(TrainArgs(output_dir=".")) == "mine" and card.title(TrainArgs(output_dir="/")) == "model"


def test_flags_that_json_has_no_form_for_are_written_as_text(tmp_path):
    summary, args = run_record(tmp_path)
    args.dataset = tmp_path
    card.write_metrics(tmp_path, {}, summary, args)
    assert json.loads((tmp_path / "metrics.json").read_text())["args"]["dataset"] == str(tmp_path)


def test_a_signal_while_it_describes_leaves_the_weights_and_a_sentence(tmp_path, capsys):
    class Interrupted(Fails):
        def baselines(self, method):
            os.kill(os.getpid(), signal.SIGTERM)
            return {}

    with pytest.raises(SystemExit) as caught:
        trained(tmp_path / "run", Interrupted())
    assert caught.value.code == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "SIGTERM: the description in" in said and "the weights are whole, card and metrics are missing" in said
    CLIPModel.from_pretrained(tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
