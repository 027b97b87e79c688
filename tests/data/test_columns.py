"""Which column is meant, and what is said of rows that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.data import columns
from mmssl.errors import BadInput

PACKAGE = Path(columns.__file__).parents[1]


def test_a_column_is_the_one_given_else_the_first_with_a_usual_name():
    assert columns.find(["picture", "img"], None, columns.IMAGE, "image") == "img"
    assert columns.find(["picture", "img"], "picture", columns.IMAGE, "image") == "picture"
    with pytest.raises(BadInput, match="^--image_column photo: the data has no such column, only picture, img$"):
        columns.find(["picture", "img"], "photo", columns.IMAGE, "image")
    with pytest.raises(BadInput, match=r"^a\.csv: no image column among words: name it with --image_column$"):
        columns.find(["words"], None, columns.IMAGE, "image", "a.csv: ")


def test_a_few_rows_are_named_and_all_are_counted_by_what_is_wrong_with_them():
    broken = {"images that cannot be decoded": [f"row {i}" for i in range(4)], "images without a caption": ["row 9"]}
    said = "4 images that cannot be decoded (row 0; row 1; row 2; ...) and 1 images without a caption (row 9)"
    assert columns.unusable(broken, 50) == said and columns.unusable({"images": []}, 50) == ""
    with pytest.raises(BadInput, match="of 49 rows, 4 images .*: too many to leave out"):
        columns.unusable(broken, 49)
    with pytest.raises(BadInput, match="no rows"):
        columns.unusable({}, 0)


def test_a_single_row_is_left_out_of_however_few_but_not_of_one():
    """One corrupt recording of 99 ended the run where it was among the 9 that are held out."""
    assert columns.unusable({"recordings": ["row 6"]}, 9) == "1 recordings (row 6)"
    for bad, total in ((2, 9), (1, 1)):
        with pytest.raises(BadInput, match="too many to leave out"):
            columns.unusable({"recordings": ["row"] * bad}, total)


def test_the_share_that_may_be_unusable_stands_in_one_place():
    stands = [file for file in PACKAGE.rglob("*.py") if "MAX_UNUSABLE =" in file.read_text(encoding="utf-8")]
    assert stands == [PACKAGE / "data" / "columns.py"]


def test_a_name_of_a_file_reaches_a_logger_on_one_line_and_without_escape_sequences(caplog):
    columns.report_unusable({"images that cannot be decoded": ["row 1: \x1b[31mevil\n## x.png"]}, 20)
    assert "row 1: \\x1b[31mevil\\n## x.png" in caplog.text and "\x1b" not in caplog.text
