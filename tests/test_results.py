"""The table of all results is made from the runs' own files."""

import json
from pathlib import Path

import pytest

from mmssl.errors import BadInput
from mmssl.hub.results import BEGIN, END, rows, table, write_into
from mmssl.hub.table import number

RECIPES = Path(__file__).parent.parent / "recipes"
RUN = {
    "results": {"trained": {"loss": 1.5, "knn_accuracy": 51.25}, "chance": {"knn_accuracy": 10.0}},
    "steps": 1200, "training_seconds": 90.0, "hardware": "2 CPU cores", "command": "accelerate launch recipes/x.py",
}  # fmt: skip


def test_the_table_in_recipes_is_that_of_the_kept_runs():
    kept = (RECIPES / "README.md").read_text().split(BEGIN)[1].split(END)[0].strip()
    assert kept == table(sorted((RECIPES / "results").glob("*.json")))


def test_a_run_has_a_row_for_each_result_with_its_baselines(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(RUN))
    loss, accuracy = rows(tmp_path / "x.json")
    assert loss.startswith("| x | Loss | 1.50 |") and "1,200 steps" in loss and "recipes/x.py" in loss
    assert "Knn accuracy | 51.2 | chance 10.0" in accuracy.replace("\\", "")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2026.13, "2026.1"), (41.25, "41.2"), (1.5, "1.50"), (0.99998, "1.00"), (0.1254, "0.125"), (0.03171, "0.0317"),
     (-0.00001, "0.0000"), (0.0, "0.00"), (None, "–")],
)  # fmt: skip
def test_small_results_keep_the_digits_that_tell_them_apart(value, shown):
    assert number(value) == shown


def test_a_document_without_the_marks_and_a_file_that_is_no_run_are_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(BadInput, match="lacks the line"):
        write_into(tmp_path / "README.md", "table")
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(BadInput, match=r"y.json is not the metrics.json of a finished run"):
        rows(tmp_path / "y.json")
