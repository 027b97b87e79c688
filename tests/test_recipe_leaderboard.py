"""The leaderboard trains, judges and lists; it continues where it was stopped, and refuses in one sentence."""

from __future__ import annotations

import csv
import json
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_encoders
from accelerate import PartialState
from datasets import Dataset

import mmssl.methods
from mmssl.data import sources
from mmssl.errors import BadInput
from mmssl.evaluation.downstream import board
from mmssl.training import monitor

RECIPE = Path(__file__).parents[1] / "recipes" / "leaderboard.py"
LABELS = {"labels": ["3", "100%"], "seeds": 1, "use_cpu": True, "passes": 1.0}
OF_TIME = ("minutes", "speed")  # columns that differ from run to run


@pytest.fixture(scope="module")
def recipe():
    PartialState(cpu=True)
    return runpy.run_path(str(RECIPE), run_name="leaderboard")


def table(place: Path) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in csv.DictReader((place / "leaderboard.csv").open())}


def ran(recipe, data: str, place: Path, **flags) -> dict[str, dict[str, str]]:
    recipe["main"](recipe["LeaderboardArgs"](dataset=data, output_dir=str(place), **LABELS | flags))
    return table(place)


def test_every_recipe_of_a_modality_alone_is_on_its_board(recipe):
    methods = {path.stem for path in Path(mmssl.methods.__file__).parent.glob("*.py")}
    images, texts, audio = (recipe["learning_from"](modality) for modality in ("image", "text", "audio"))
    assert {"simclr", "mae", "dino"} <= {*images} <= methods and not {"clip", "bert", "videomae"} & {*images}
    assert {*texts} == {"bert", "causal_lm", "char_rnn", "cpc_text", "electra", "simcse", "word2vec"}
    assert {*audio} == {"cpc_audio", "hubert", "wav2vec2"}


def test_the_columns_of_the_data_decide_the_modality(recipe, tmp_path):
    for name, modality in {"digits": "image", "paragraphs": "text", "voices": "audio"}.items():
        assert recipe["modality_of"](recipe["LeaderboardArgs"](dataset=name)) == modality
    with pytest.raises(BadInput, match="--dataset wikipedia: no label column among title, text"):
        ran(recipe, "wikipedia", tmp_path)
    with pytest.raises(BadInput, match="--labels 0.1: give a percentage of the training labels"):
        recipe["modality_of"](recipe["LeaderboardArgs"](dataset="digits", labels=["10%", "0.1"]))
    Dataset.from_dict({"number": [1, 2], "label": [0, 1]}).to_parquet(tmp_path / "numbers.parquet")
    with pytest.raises(BadInput, match="none of its columns number, label holds inputs .image: image, img"):
        ran(recipe, str(tmp_path / "numbers.parquet"), tmp_path)


def test_methods_stand_beside_what_is_not_trained_and_a_second_call_trains_nothing(recipe, tmp_path, capsys):
    data, other = tiny_encoders.images(tmp_path / "data", 400), tiny_encoders.vit(tmp_path / "other")
    board = ran(recipe, data, tmp_path / "board", methods=["simclr", "rotation"], encoders=[other])
    assert board.keys() == {"raw pixels", "chance", "untrained resnet of simclr", "simclr", "rotation", other}
    assert all(0 <= float(row["linear, 100% of the labels"]) <= 100 for row in board.values())
    assert (board["simclr"]["seen"], board["chance"]["seen"]) == ("256 images", "")
    text = (tmp_path / "board" / "leaderboard.md").read_text()
    assert text in capsys.readouterr().out + "\n" and (tmp_path / "board" / "leaderboard.png").exists()
    again = ran(recipe, data, tmp_path / "board", methods=["simclr"])
    assert again["simclr"] == board["simclr"] and "recipes/" not in capsys.readouterr().out
    assert {"raw pixels", "untrained resnet of rotation"} <= ran(
        recipe, data, tmp_path / "board", methods=["rotation"]
    ).keys()  # the first call computed them with the row of simclr
    other_labels = ran(recipe, data, tmp_path / "board", methods=["simclr"], labels=["50%"])
    assert {*other_labels["simclr"]} >= {"linear, 50% of the labels"} and "simclr.py" not in capsys.readouterr().out
    with pytest.raises(BadInput, match="holds a table with --passes 1.0, not 2.0"):
        ran(recipe, data, tmp_path / "board", methods=["simclr"], passes=2.0)


def test_a_method_that_fails_says_why_and_the_others_are_not_lost(recipe, tmp_path):
    data = tiny_encoders.texts(tmp_path / "data", 400)
    board = ran(recipe, data, tmp_path / "board", methods=["cpc_text", "char_rnn"])
    assert board["cpc_text"]["note"].startswith("failed: ") and "sentences" in board["cpc_text"]["note"]
    assert board["tf-idf"]["k-NN, 3 per class"] and float(board["char_rnn"]["linear, 100% of the labels"]) > 50


@pytest.mark.slow  # a minute: starts the command again and again
def test_boards_killed_at_random_moments_and_continued_give_the_table_of_one_that_was_not(tmp_path):
    data, draw = tiny_encoders.images(tmp_path / "data", 400), random.Random(0)
    flags = ["--dataset", data, "--methods", "simclr", "mae", "--passes", "12", "--use_cpu"]
    flags += ["--labels", "3", "100%", "--seeds", "1", "--output_dir"]

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, RECIPE, *flags, tmp_path / name], start_new_session=True)

    began = time.monotonic()
    assert start("whole").wait() == 0
    seconds, whole = time.monotonic() - began, table(tmp_path / "whole")
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGTERM)):
        for _ in range(2):
            run = start(name)
            time.sleep(draw.uniform(0.3, 0.8) * seconds)
            run.send_signal(number)  # to the board alone: what it has started must end with it
            run.wait()
        assert start(name).wait() == 0
        for row, cells in table(tmp_path / name).items():
            assert {k: v for k, v in cells.items() if k not in OF_TIME} == {
                k: v for k, v in whole[row].items() if k not in OF_TIME
            }, (name, row)


def test_it_refuses_before_it_trains(recipe, tmp_path):
    with pytest.raises(BadInput, match="--methods clip: no recipe of that name learns from image data alone; .*simclr"):
        ran(recipe, "digits", tmp_path, methods=["clip"])
    with pytest.raises(BadInput, match="--passes has no effect with --minutes 2"):
        recipe["LeaderboardArgs"](minutes=2.0, passes=7.0)


def test_a_row_that_collapsed_says_so(tmp_path):
    warned = [monitor.collapse(1.5, 0.01, 100), "the loss curve failed: OSError: a full disk"]
    metrics = {"samples_seen": 512, "training_seconds": 2.0, "warnings": warned}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "log.jsonl").write_text('{"step": 2, "images_per_second": 256.0, "effective_rank": 1.5}\n')
    row = board.of_training(tmp_path)
    assert row["effective rank"] == 1.5 and row["seen"] == "512 images" and row["speed"] == "256 images/s"
    assert row["note"] == "features have collapsed; the loss curve failed"


def test_a_time_is_turned_into_steps_by_the_speed_of_the_last_ones(tmp_path):
    lines = [(10, 8.0), (20, 10.0), (30, 12.0)]  # the first steps are slower
    log = "".join(json.dumps({"step": step, "seconds": seconds}) + "\n" for step, seconds in lines)
    (tmp_path / "log.jsonl").write_text(log + json.dumps({"step": 30, "eval_loss": 1.0}) + "\n")
    assert board.steps_per_second(tmp_path) == 5.0


def test_the_built_in_paragraphs_are_of_ten_articles_and_none_is_in_both_parts():
    parts = sources.load("paragraphs")
    train, test = parts["train"], parts["test"]
    assert len(set(train["label"])) == 10 and {*train["label"]} == {*test["label"]}
    assert len(train) > 1000 and 4.5 < len(train) / len(test) < 5.5 and not {*train["text"]} & {*test["text"]}
