"""First kernels that see only grey, or only colour: exact on any image, in each kind of encoder."""

from __future__ import annotations

import pytest
import torch
from tiny.cpc_image import bit
from tiny.simclr import resnet, vit
from transformers import ResNetConfig, ResNetModel

from mmssl.errors import BadInput
from mmssl.kernels.views_torch import LUMA
from mmssl.models import colour_directions, image_encoders, sobel

MEAN, STD = torch.tensor(image_encoders.MEAN), torch.tensor(image_encoders.STD)


def encoder(build, directions):
    torch.manual_seed(0)
    model = build().eval()
    colour_directions.restrict(model, colour_directions.projection(directions, STD))
    return model


def features(model, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return image_encoders.features(model, (pixels - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1))


def luma(pixels: torch.Tensor) -> torch.Tensor:
    return (torch.tensor(LUMA).view(3, 1, 1) * pixels).sum(1, keepdim=True)


@pytest.mark.parametrize("build", [resnet, bit, vit])
def test_kernels_that_see_grey_see_a_picture_as_its_grey_form(build):
    model, pixels = encoder(build, colour_directions.GREY), torch.rand(4, 3, 16, 16)
    grey = luma(pixels).expand(-1, 3, -1, -1)
    torch.testing.assert_close(features(model, pixels), features(model, grey), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features(model, pixels), features(model, 0.5 * grey), atol=1e-3)


@pytest.mark.parametrize("build", [resnet, bit])
def test_kernels_that_see_colour_do_not_see_how_light_a_picture_is(build):
    model, pixels = encoder(build, colour_directions.OPPONENT), 0.25 + 0.5 * torch.rand(4, 3, 16, 16)
    shade = 0.2 * torch.rand(4, 1, 16, 16)
    torch.testing.assert_close(features(model, pixels), features(model, pixels + shade), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features(model, pixels), features(model, pixels.flip(1)), atol=1e-3)


def test_grey_and_colour_together_are_all_there_is():
    grey, colour = (
        colour_directions.projection(each, STD) for each in (colour_directions.GREY, colour_directions.OPPONENT)
    )
    assert torch.linalg.matrix_rank(grey) == 1 and torch.linalg.matrix_rank(colour) == 2
    assert torch.linalg.matrix_rank(grey + colour) == 3
    torch.testing.assert_close(grey @ grey, grey)


def test_a_second_restriction_changes_nothing():
    for build in (resnet, bit):
        model = encoder(build, colour_directions.GREY)
        before = sobel.first(model).weight.clone()
        colour_directions.restrict(model, colour_directions.projection(colour_directions.GREY, STD))
        torch.testing.assert_close(sobel.first(model).weight, before, atol=1e-6, rtol=1e-5)


def test_an_encoder_of_one_channel_is_refused():
    model = ResNetModel(ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(BadInput, match="first kernels see 1 channels of an image, not 3"):
        colour_directions.restrict(model, torch.eye(3))
