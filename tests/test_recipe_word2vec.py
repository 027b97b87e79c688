"""The word2vec recipe end to end, on the least that it can be given, and the flags that it refuses."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import RECIPES, Processes, at_home

from mmssl.device import precision
from mmssl.errors import BadInput

RUN = "--max_steps 2 --per_device_train_batch_size 1 --dimension 8 --save_steps 0 --use_cpu"


def without_numba(*args) -> None:
    sys.modules["numba"] = None  # as where it is not installed
    at_home(*args)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("word2vec")
    (place / "few.txt").write_text('one "two" three\n' * 200)
    return place


@pytest.fixture(scope="module")
def said(place) -> str:
    """A run on a text of three words, where numba is missing."""
    flags = [*RUN.split(), "--plain", "False", "--dataset", place / "few.txt", "--output_dir", place / "run"]
    return Processes(without_numba, place / "home", "word2vec", *flags, log=place / "run.log").succeed()


def test_a_text_of_three_words_leaves_everything_that_a_run_leaves(said, place):
    files = {str(path.relative_to(place / "run")) for path in (place / "run").rglob("*") if path.is_file()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "vectors.bin", "vectors.txt", "README.md",
                     "modules.json", "metrics.json", "log.jsonl", "pretraining/outputs.safetensors", "figures/map.png",
                     "figures/loss.png"}  # fmt: skip
    results = json.loads((place / "run" / "metrics.json").read_text())["results"]
    assert set(results) == {"trained", "untrained"}
    assert results["trained"]["WordSim-353 coverage"] == 0
    card = (place / "run" / "README.md").read_text()
    assert """vectors.most_similar('"two"', topn=5)""" in card  # a word may hold what Python would take for its end


def test_without_numba_the_reason_is_said_and_torch_trains(said):
    assert "the kernel cannot be compiled (ModuleNotFoundError: import of numba halted" in said


def test_empty_lines_between_lines_and_before_them_train_like_none(tmp_path):
    lines = "one two three four five\n" + "\n" * 10
    (tmp_path / "gaps.txt").write_text("\n" * 1000 + 300 * lines)
    flags = [*RUN.split(), "--plain", "False", "--dataset", tmp_path / "gaps.txt", "--output_dir", tmp_path / "run"]
    Processes(at_home, tmp_path / "home", "word2vec", *flags, log=tmp_path / "run.log").succeed()
    assert "1,500 words" in (tmp_path / "run" / "README.md").read_text()
    ids = np.fromfile(next((tmp_path / "home").rglob("ids.int32")), np.int32)
    assert ids.reshape(300, 6)[:, -1].tolist() == [-1] * 300


def test_its_precision_is_said_to_be_what_it_is():
    args = runpy.run_path(str(RECIPES / "word2vec.py"))["Word2VecArgs"]()
    assert precision(args) == "no"  # also where the device computes bf16 fast


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_words": 0}, "--max_words is 0; it must be 1 or more"),
        ({"bf16": "yes", "weight_decay": 0.1}, "--weight_decay, --bf16 have no effect with word2vec, whose tables"),
        ({"batched": True, "threads": 99}, "--threads has no effect with --batched"),
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(flags, said):
    with pytest.raises(BadInput, match=said):
        runpy.run_path(str(RECIPES / "word2vec.py"))["Word2VecArgs"](**flags)
