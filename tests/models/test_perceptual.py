"""The error on the features of an encoder that is not trained."""

from __future__ import annotations

import pytest
import torch
from tiny.super_resolution import perceptual
from transformers import ViTImageProcessorPil

from mmssl.errors import BadInput
from mmssl.models import image_encoders
from mmssl.models.linear_image import LinearImageConfig, LinearImageModel
from mmssl.models.perceptual import Perceptual


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_it_is_0_for_equal_images_and_the_relative_squared_error_of_the_maps_for_others():
    one = perceptual()
    assert one(images(), images()).tolist() == [0, 0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (image_encoders.MEAN, image_encoders.STD))
    with torch.no_grad():
        a, b = ((one.encoder((images(seed) - mean) / std)).last_hidden_state for seed in (0, 1))
    expected = [((x - y) ** 2).sum() / (y**2).sum() for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(one(images(0), images(1)), torch.stack(expected))


def test_the_prediction_gets_a_gradient_and_the_encoder_none_nor_new_statistics():
    one, predicted = perceptual().train(), images(0).requires_grad_()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    one(predicted, images(1)).sum().backward()
    assert predicted.grad.abs().sum() > 0 and all(p.grad is None for p in one.parameters())
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_a_vit_sees_images_of_its_own_size():
    encoder, processor = image_encoders.from_scratch("vit-micro", 32)
    assert Perceptual(encoder, processor)(images(0), images(1)).shape == (2,)


def test_an_encoder_without_a_map_is_refused():
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    with pytest.raises(BadInput, match="no feature maps"):
        Perceptual(LinearImageModel(LinearImageConfig(image_size=16, hidden_size=4)), processor)
