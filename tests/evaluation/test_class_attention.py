"""The attention of a ViT's class token."""

from __future__ import annotations

import pytest
import torch
from tiny.simclr import resnet, vit

from mmssl.evaluation.class_attention import class_attention, draw
from mmssl.models.vit_tokens import has_square_grid


@torch.no_grad()
def test_the_class_token_looks_at_the_patch_whose_key_matches_its_query():
    model, pixels = vit().eval(), torch.randn(2, 3, 16, 16)
    attention = class_attention(model, pixels)
    assert attention.shape == (2, 2, 4, 4) and (attention >= 0).all() and (attention.sum((2, 3)) < 1).all()
    hidden = model(pixels, output_hidden_states=True).hidden_states[-2]
    layer = model.layers[-1]
    normed, attends = layer.layernorm_before(hidden), layer.attention
    q, k = (project(normed).unflatten(2, (2, 16)).transpose(1, 2) for project in (attends.q_proj, attends.k_proj))
    expected = (q @ k.transpose(2, 3) / 4).softmax(-1)[:, :, 0, 1:].unflatten(2, (4, 4))
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-4)


def test_the_way_attention_is_computed_is_left_as_it_was():
    model = vit().eval()
    before, pixels = model.config._attn_implementation, torch.randn(1, 3, 16, 16)
    output = model(pixels).last_hidden_state
    class_attention(model, pixels)
    assert model.config._attn_implementation == before
    assert torch.equal(model(pixels).last_hidden_state, output)


def test_only_a_vit_has_it(tmp_path):
    assert has_square_grid(vit()) and not has_square_grid(resnet())
    images = torch.rand(3, 3, 16, 16)
    assert "class token" in draw(vit().eval(), images, images, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 1000


@pytest.mark.parametrize("images", [1, 3])
def test_one_image_is_enough(images, tmp_path):
    pixels = torch.rand(images, 3, 16, 16)
    draw(vit().eval(), pixels, pixels, tmp_path / "attention.png")
