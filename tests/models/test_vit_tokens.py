"""A stock ViT on some of its patches: equal to transformers' own forward where all patches are there."""

from __future__ import annotations

import pytest
import torch
from tiny.simclr import resnet, vit
from transformers import ViTConfig, ViTModel

from mmssl.errors import BadInput
from mmssl.models import vit_tokens


def encoder(use_mask_token: bool = False) -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    return ViTModel(config, use_mask_token=use_mask_token).eval()


@pytest.mark.parametrize("size", [16, 8, 24])
def test_with_all_patches_it_is_the_models_own_forward_at_any_size(size):
    model, pixels = encoder(), torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(vit_tokens.encode(model, vit_tokens.embed(model, pixels)), expected)


def test_masked_patches_are_those_of_transformers():
    model, pixels, masked = encoder(use_mask_token=True), torch.randn(3, 3, 16, 16), torch.rand(3, 16) < 0.5
    token = torch.randn(32)
    with torch.no_grad():
        model.embeddings.mask_token.copy_(token)
        expected = model(pixels, bool_masked_pos=masked).last_hidden_state
        tokens = vit_tokens.embed(model, pixels, masked=masked, mask_token=token)
        torch.testing.assert_close(vit_tokens.encode(model, tokens), expected)


def test_unseen_tokens_change_nothing_as_if_they_were_not_there():
    model, tokens, seen = encoder(), torch.randn(2, 9, 32), torch.arange(9).expand(2, -1) < 6
    with torch.no_grad():
        expected = vit_tokens.encode(model, tokens[:, :6])
        torch.testing.assert_close(vit_tokens.encode(model, tokens, seen)[:, :6], expected)


def test_tokens_are_taken_at_their_places():
    tokens = torch.arange(12.0).view(2, 3, 2)
    assert vit_tokens.at(tokens, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_patches_inside_blocks_are_those_of_their_rows_and_columns():
    top, left = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    grid = vit_tokens.inside(top, left, torch.tensor([[2.0]]), torch.tensor([[1.0]]), 3).view(2, 3, 3)
    assert grid.long().tolist() == [[[0, 1, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0], [1, 0, 0]]]


def test_fixed_positions_differ_between_patches_and_are_not_trained():
    model = vit()
    vit_tokens.initialise(model)
    positions = model.embeddings.position_embeddings
    assert not positions.requires_grad and len(positions[0].unique(dim=0)) == 17 and not positions[0, 0].any()


def test_an_encoder_without_a_square_grid_of_patches_is_refused():
    with pytest.raises(
        BadInput, match="iBOT masks patches of a ViTModel, and this is a ResNetModel; use --encoder vit-micro"
    ):
        vit_tokens.check(resnet(), "iBOT")
    config = ViTConfig(image_size=(16, 8), patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(BadInput, match="8 patches an image"):
        vit_tokens.check(ViTModel(config), "iBOT")
