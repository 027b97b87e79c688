"""The leaderboard trains, judges and lists; it continues where it was stopped, and refuses in one sentence."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest
import tiny_encoders
from accelerate import PartialState

import mmssl.methods
from mmssl.errors import BadInput

RECIPE = Path(__file__).parents[1] / "recipes" / "leaderboard.py"
LABELS = {"labels": ["3", "100%"], "seeds": 1, "use_cpu": True, "images": 512}


@pytest.fixture(scope="module")
def recipe():
    PartialState(cpu=True)
    return runpy.run_path(str(RECIPE), run_name="leaderboard")


def ran(recipe, data: str, place: Path, **flags) -> dict[str, dict[str, str]]:
    recipe["main"](recipe["LeaderboardArgs"](dataset=data, output_dir=str(place), **LABELS | flags))
    return {row["name"]: row for row in csv.DictReader((place / "leaderboard.csv").open())}


def test_every_recipe_of_images_alone_is_on_it(recipe):
    methods = {path.stem for path in Path(mmssl.methods.__file__).parent.glob("*.py")}
    listed = recipe["image_recipes"]()
    assert {"simclr", "mae", "dino"} <= listed.keys() <= methods and not {"clip", "bert", "word2vec"} & listed.keys()


def test_methods_stand_beside_what_is_not_trained_and_a_second_call_trains_nothing(recipe, tmp_path, capsys):
    data, other = tiny_encoders.images(tmp_path / "data", 400), tiny_encoders.vit(tmp_path / "other")
    board = ran(recipe, data, tmp_path / "board", methods=["simclr"], encoders=[other])
    assert board.keys() == {"raw pixels", "chance", "untrained resnet-micro", "simclr", other}
    assert all(0 <= float(row["linear, 100% of the labels"]) <= 100 for row in board.values())
    assert (board["simclr"]["images"], board["chance"]["images"]) == ("512", "")
    text = (tmp_path / "board" / "leaderboard.md").read_text()
    assert text in capsys.readouterr().out + "\n" and (tmp_path / "board" / "leaderboard.png").exists()
    again = ran(recipe, data, tmp_path / "board", methods=["simclr"])
    assert again["simclr"] == board["simclr"] and "accelerate launch" not in capsys.readouterr().out


def test_a_method_that_fails_is_named_and_the_others_are_not_lost(recipe, tmp_path):
    data = tiny_encoders.images(tmp_path / "data")
    (tmp_path / "board" / "mae").mkdir(parents=True)
    (tmp_path / "board" / "mae" / "config.json").write_text("the user's own")
    board = ran(recipe, data, tmp_path / "board", methods=["mae"])
    assert board["mae"]["note"] == "failed" and board["raw pixels"]["k-NN, 3 per class"]


def test_it_refuses_before_it_trains(recipe, tmp_path):
    with pytest.raises(BadInput, match="--methods clip: no recipe of that name learns from images alone; .*simclr"):
        ran(recipe, "digits", tmp_path, methods=["clip"])
