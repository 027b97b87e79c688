"""Halves of a ResNet: the joined network is both of them at once, and nothing passes between them."""

from __future__ import annotations

import pytest
import torch
from tiny.cpc_image import bit
from tiny.simclr import resnet, vit
from tiny.split_brain import bottlenecks
from transformers import ResNetConfig, ResNetModel

from mmssl.errors import BadInput
from mmssl.models import halves, hypercolumns, image_encoders


def trained_a_little(build) -> tuple[ResNetModel, ResNetModel]:
    torch.manual_seed(0)
    first, second = halves.halve(build())
    with torch.no_grad():  # batch norms of a new network are all alike
        for half in (first, second):
            for value in half.parameters():
                value.add_(0.1 * torch.randn_like(value))
            half.train()(torch.randn(4, 3, 16, 16))
    return first.eval(), second.eval()


@pytest.mark.parametrize("build", [resnet, bottlenecks])
@torch.no_grad()
def test_every_map_of_the_joined_network_is_that_of_one_half_then_of_the_other(build):
    first, second = trained_a_little(build)
    joined, pixels = halves.join(first, second), torch.randn(2, 3, 32, 32)
    both = zip(hypercolumns.maps(first, pixels), hypercolumns.maps(second, pixels), strict=True)
    for whole, parts in zip(hypercolumns.maps(joined, pixels), both, strict=True):
        torch.testing.assert_close(whole, torch.cat(parts, 1))


def test_halving_the_joined_network_gives_the_halves_back():
    first, second = trained_a_little(resnet)
    for half, again in zip((first, second), halves.halve(halves.join(first, second)), strict=True):
        for name, value in half.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name


def test_a_new_network_is_not_separate_and_a_joined_one_is():
    torch.manual_seed(0)
    assert not halves.are_separate(resnet()) and halves.are_separate(halves.join(*trained_a_little(resnet)))


def test_a_joined_network_has_the_configuration_that_it_came_from():
    encoder = resnet()
    joined = halves.join(*halves.halve(encoder))
    assert joined.config.hidden_sizes == encoder.config.hidden_sizes
    assert image_encoders.width(joined) == image_encoders.width(encoder)


@pytest.mark.parametrize("build", [bit, vit])
def test_networks_whose_norms_or_attention_mix_channels_are_refused(build):
    with pytest.raises(BadInput, match="has no halves that do not see each other"):
        halves.halve(build())


def test_an_odd_number_of_channels_is_refused():
    with pytest.raises(BadInput, match="a layer of 9 channels, which cannot be halved"):
        halves.halve(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 9], depths=[1, 1])))
