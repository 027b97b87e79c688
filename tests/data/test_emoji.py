import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmssl.data import sources
from mmssl.data.built_in import emoji
from mmssl.data.images.decoding import undecoded
from mmssl.errors import BadInput

HELD_OUT_FIRST = ["negative squared ab", "squared free", "squared sos", "ascension island flag"]
SCRIPT = Path(__file__).parents[2] / "data_scripts" / "emoji.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("built") / "emoji"
    run = subprocess.run([sys.executable, SCRIPT, directory], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "CC BY 4.0" in run.stdout
    return directory


def test_the_script_builds_what_the_recipe_reads(folder):
    data = sources.load(str(folder))
    assert (len(data["train"]), len(data["test"])) == (1_689, 200)
    assert data["train"].features == emoji.features()
    assert all(data["train"]["captions"]) and set(data["test"]["category"]) == set(emoji.CATEGORY_NAMES)


def test_no_held_out_picture_or_name_was_seen_in_training(folder):
    data = {name: undecoded(rows, "image") for name, rows in sources.load(str(folder)).items()}
    seen = {row["image"]["bytes"] for row in data["train"]}, {row["captions"][0] for row in data["train"]}
    held_out = [row["image"]["bytes"] for row in data["test"]], [row["captions"][0] for row in data["test"]]
    for before, after in zip(seen, held_out, strict=True):
        assert not before & set(after) and len(set(after)) == 200


def test_the_same_emoji_are_held_out_for_ever(folder):
    names = sources.load(str(folder))["test"]["captions"]
    assert [captions[0] for captions in names[:4]] == HELD_OUT_FIRST


def test_a_name_is_written_in_words():
    assert emoji.captions("FAMILY: MAN, BOY", ["man-boy", "+1", "family_man_boy"]) == ["family man boy", "man boy"]


def test_pictures_stand_on_white(folder):
    picture = sources.load(str(folder))["test"][0]["image"]
    assert picture.mode == "RGB" and picture.size == (72, 72)
    corners = np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="already exists and is not empty"):
        emoji.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
