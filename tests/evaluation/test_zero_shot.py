import datasets
import pytest
import torch

from mmssl.errors import BadInput
from mmssl.evaluation.zero_shot import chance, class_embeddings, labels, zero_shot


def test_accuracy_of_a_case_made_by_hand():
    classes = torch.eye(3)
    image = torch.tensor([[9.0, 1, 0], [1, 2, 0], [0, 0.1, 0], [0, 1, 0.9], [0, 0, 5]])  # predicts 0 1 1 1 2
    label = torch.tensor([0, 0, 1, 2, 2])  # right: 1 0 1 0 1
    values = zero_shot(image, classes, label)
    assert values["zero_shot_accuracy"] == pytest.approx(60)
    assert values["zero_shot_mean_class_accuracy"] == pytest.approx(100 * (1 / 2 + 1 + 1 / 2) / 3)


def test_chance_is_one_in_the_number_of_classes_and_the_largest_class():
    values = chance(torch.tensor([0, 1, 1, 1]), classes=5)
    assert values["zero_shot_accuracy"] == 20 and values["zero_shot_majority_class"] == 75


def test_a_class_is_the_mean_direction_of_its_names_in_all_templates():
    directions = {"a cat": [3.0, 0, 0], "cat": [0, 5.0, 0], "a kitten": [1.0, 0, 0], "kitten": [0, 0, 2.0],
                  "a dog": [0, 0, 1.0], "dog": [0, 0, 1.0]}  # fmt: skip
    centres = class_embeddings(
        lambda texts: torch.tensor([directions[t] for t in texts]),
        {"felis": ["cat", "kitten"], "canis": ["dog"]},
        ["a {}", "{}"],
    )
    expected = torch.tensor([[2.0, 1, 1], [0, 0, 1]])
    torch.testing.assert_close(centres, expected / expected.norm(dim=1, keepdim=True))


def test_a_template_without_a_place_for_the_name_is_refused():
    with pytest.raises(BadInput, match="'a photo' has no {} where the class name goes"):
        class_embeddings(lambda texts: torch.ones(len(texts), 2), {"a": ["a"]}, ["{}", "a photo"])


def test_labels_come_from_strings_or_from_named_numbers():
    data = datasets.Dataset.from_dict({"kind": ["dog", "cat", "dog"], "label": [1, 0, 1]})
    data = data.cast_column("label", datasets.ClassLabel(names=["tree", "lake", "sea"]))
    assert labels(data, "kind")[0] == ["cat", "dog"] and labels(data, "kind")[1].tolist() == [1, 0, 1]
    assert labels(data, "label")[0] == ["tree", "lake", "sea"] and labels(data, "label")[1].tolist() == [1, 0, 1]


def test_a_missing_label_column_or_label_is_named():
    data = datasets.Dataset.from_dict({"kind": ["dog", None, ""]})
    with pytest.raises(BadInput, match="--label_column label: the data has no such column, only kind"):
        labels(data, "label")
    with pytest.raises(BadInput, match="2 held-out rows have no label, row 1 first"):
        labels(data, "kind")
