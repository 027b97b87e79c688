"""Predictions at each position from all feature maps: where they come from, and that they are those of joined maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny.cpc_image import bit
from tiny.simclr import resnet, vit
from transformers import SwinConfig, SwinModel

from mmssl.errors import BadInput
from mmssl.models import hypercolumns, image_encoders


@pytest.mark.parametrize("build", [resnet, bit, vit])
def test_the_last_map_holds_the_features_and_each_other_one_positions(build):
    model, pixels = build().eval(), torch.rand(2, 3, 16, 16)
    found = hypercolumns.maps(model, pixels)
    assert torch.equal(found[-1].flatten(1), image_encoders.features(model, pixels))
    assert [each.shape[1] for each in found] == hypercolumns.channels(model)
    assert all(each.shape[2:] in ((4, 4), (2, 2)) for each in found[:-1])


def test_a_patch_of_a_vit_is_at_its_own_position():
    model, pixels = vit().eval(), torch.rand(1, 3, 16, 16)
    tokens = model(pixels).last_hidden_state
    assert torch.equal(hypercolumns.maps(model, pixels)[0][0, :, 2, 3], tokens[0, 1 + 4 * 2 + 3])


def test_it_equals_a_linear_layer_on_the_enlarged_and_joined_maps():
    torch.manual_seed(0)
    head = hypercolumns.Hypercolumns([6, 4, 3], 5, 7)
    torch.nn.init.normal_(head.classify.weight)
    maps = [torch.randn(2, 6, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 3, 1, 1)]
    normed = [norm(each) for norm, each in zip(head.norms, maps, strict=True)]
    joined = torch.cat([F.interpolate(each, (8, 8), mode="bilinear") for each in normed], 1)
    weight = torch.cat([layer.weight for layer in head.joined], 1)
    expected = head.classify(F.relu(F.conv2d(joined, weight, head.joined[-1].bias)).permute(0, 2, 3, 1))
    torch.testing.assert_close(head(maps, (8, 8)), expected)


def test_an_encoder_without_such_maps_is_refused():
    model = SwinModel(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2)
    )
    with pytest.raises(BadInput, match="a SwinModel has no feature maps that this method can read"):
        hypercolumns.channels(model)


def test_traced_for_compilation_maps_are_enlarged_with_the_same_values_and_gradients():
    torch.manual_seed(0)
    size = (6, 5)
    maps = torch.randn(2, 3, 3, 2, requires_grad=True)
    weight = torch.randn(2, 3, *size)
    found = []
    for enlarged in (hypercolumns.enlarged, torch.compile(hypercolumns.enlarged, backend="eager")):
        result = enlarged(maps, size)
        found.append((result, *torch.autograd.grad((result * weight).sum(), maps)))
    for eager, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, eager)
