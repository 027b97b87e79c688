"""Features without training: both parts have the same, and data without words is refused."""

from types import SimpleNamespace

import pytest
import torch

from mmssl.data import labelled
from mmssl.errors import BadInput
from mmssl.evaluation.downstream.raw_features import raw_features


def images(pixels: torch.Tensor) -> SimpleNamespace:
    inputs = labelled.Images.__new__(labelled.Images)
    inputs.pixels, inputs.rows = pixels, torch.arange(len(pixels))
    return SimpleNamespace(inputs=inputs)


@pytest.mark.parametrize(("coloured", "width"), [(0, 16), (1, 48)])
def test_images_are_grey_only_if_those_of_both_parts_are(coloured, width):
    grey = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(5, 3, 1, 1)
    train = grey.clone()
    train[:coloured, 0] = 200
    x, z = raw_features(images(train), images(grey))
    assert x.shape == (5, width) and z.shape == (5, width)


def test_texts_without_words_are_refused():
    inputs = labelled.Texts.__new__(labelled.Texts)
    inputs.texts = ["a", "b"]
    part = labelled.Labelled(inputs, torch.tensor([0, 1]), ["a", "b"], "")
    with pytest.raises(BadInput, match="tf-idf finds no words in the texts .*: leave raw out of --baselines"):
        raw_features(part, part)
