"""Labels: which rows are held out, which classes there are, how many labels are used, and what is refused."""

import pytest
import torch
from datasets import ClassLabel, Dataset

from mmssl.data import labels
from mmssl.errors import BadInput


def table(label: list, **others: list) -> Dataset:
    return Dataset.from_dict({"text": [f"text {i}" for i in range(len(label))], "label": label, **others})


def test_a_column_of_classes_is_held_out_by_name():
    rows = table([0, 1] * 20, speaker=[0, 0, 0, 1] * 10)
    rows = rows.cast_column("speaker", ClassLabel(names=["theo", "lucas"]))
    (_, test), _, _ = labels.with_labels({"train": rows}, hold_out="speaker=lucas")
    assert list(test["speaker"]) == [1] * 10
    with pytest.raises(BadInput, match="no row has 'anna'; speaker holds lucas; theo"):
        labels.with_labels({"train": rows}, hold_out="speaker=anna")


def test_values_of_a_condition_may_have_spaces_and_each_must_occur():
    rows = table(["a", "b", "c", "d"] * 20, who=["x", "y", "x", "z"] * 20)
    train, test = labels._held_out(rows, "who=y, z")
    assert set(test["who"]) == {"y", "z"} and set(train["who"]) == {"x"}
    with pytest.raises(BadInput, match="--hold_out who=y,zz: no row has 'zz'; who holds x; y; z"):
        labels._held_out(rows, "who=y,zz")


def test_a_condition_that_holds_out_nothing_is_refused():
    data = {"train": table(["a", "b"] * 20)}
    with pytest.raises(BadInput, match="--hold_out label=c: no row has 'c'"):
        labels.with_labels(data, hold_out="label=c")
    with pytest.raises(BadInput, match="--hold_out speaker: give a column of text, label"):
        labels.with_labels(data, hold_out="speaker")


def test_images_of_a_single_folder_have_no_labels():
    data = {"train": Dataset.from_dict({"image": ["a.png"] * 20})}
    with pytest.raises(BadInput, match="a folder of its own, at least two"):
        labels.with_labels(data)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (["a", None] * 20, "20 training rows have no label, row 1 first"),
        (["a"] * 40, "every training row has the label 'a'; a probe needs two classes"),
        ([f"{i}" for i in range(40)], "40 different values in 40 rows cannot be classes"),
    ],
)
def test_labels_that_are_none_are_refused(label, said):
    with pytest.raises(BadInput, match=said):
        labels.with_labels({"train": table(label), "test": table(["a", "b"] * 5)})


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([[0], [1]] * 10, r"--label_column label holds List\(.*\), not one label per row"),
        ([{"a": 0}, {"a": 1}] * 10, "--label_column label holds .*, not one label per row"),
        ([float("nan"), 1.0] * 10, "training rows have no label"),
    ],
)
def test_what_is_no_label_is_refused(label, said):
    with pytest.raises(BadInput, match=said):
        labels.with_labels({"train": table(label)})


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([0.5, 1.25] * 20, "label holds fractions such as 0.5: a quantity, not classes"),
        ([1, -1] * 20, r"18 training rows have no label, row 0 first \(an empty text and -1 count as none\)"),
    ],
)
def test_what_is_no_class_is_refused(label, said):
    with pytest.raises(BadInput, match=said):
        labels.with_labels({"train": table(label)}, held_out=4)


def test_whole_numbers_in_a_column_of_fractions_are_classes():
    _, _, names = labels.with_labels({"train": table([0.0, 1.0] * 20)}, held_out=4)
    assert names == ["0.0", "1.0"]


def test_a_label_that_training_does_not_have_is_refused():
    with pytest.raises(BadInput, match="no training row has the test label 'c'"):
        labels.with_labels({"train": table(["a", "b"] * 20), "test": table(["a", "c"] * 5)})


def test_a_few_rows_may_lack_a_class():
    data = {"train": table([i % 50 for i in range(400)])}
    parts, of_parts, names = labels.with_labels(data, max_samples=20)
    assert [*map(len, parts)] == [*map(len, of_parts)] == [20, 20] and len(names) == 50


@pytest.mark.parametrize(("amount", "expected"), [("10%", [10, 5, 1]), ("100%", [100, 50, 8]), ("20", [20, 20, 8])])
def test_a_subset_has_its_share_of_each_class(amount, expected):
    label = torch.tensor([0] * 100 + [1] * 50 + [2] * 8)
    rows = labels.subset(label, amount, seed=0)
    assert torch.bincount(label[rows]).tolist() == expected and len(rows.unique()) == len(rows)
    assert torch.equal(rows, labels.subset(label, amount, seed=0))
    assert amount == "100%" or not torch.equal(rows, labels.subset(label, amount, seed=1))


def test_more_labels_than_there_are_take_all():
    label = torch.tensor([0, 0, 1])
    assert labels.subset(label, "9" * 20, 0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("amount", ["0%", "120%", "0", "-3", "few"])
def test_an_amount_that_is_none_is_named(amount):
    with pytest.raises(BadInput, match=f"--labels {amount}: give a percentage"):
        labels.subset(torch.tensor([0, 1]), amount, seed=0)
