"""A ViLT from the layers of an image encoder: equal to that encoder where there are no words."""

from __future__ import annotations

import pytest
import tiny_clip
import tiny_encoders
import torch
import torch.nn.functional as F
from tiny import bert as texts
from tiny import lxmert as tiny
from tiny_clip import MEAN
from torch import Tensor, nn
from transformers import CLIPModel, ViltForMaskedLM, ViTModel

from mmssl.errors import BadInput
from mmssl.models import vilt


def tokenizer():
    words = texts.tokenizer()
    words.model_max_length = texts.LENGTH
    return words


@torch.no_grad()
def without_words(model: ViltForMaskedLM, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(embeddings, output) of the class token and the patches, (batch, 1 + patches, width) each, where nothing attends
    to words."""
    parts = model.vilt.embeddings
    tokens = parts.patch_embeddings(pixels).flatten(2).mT
    tokens = torch.cat([parts.cls_token.expand(len(tokens), -1, -1), tokens], 1) + parts.position_embeddings
    tokens = embedded = tokens + parts.token_type_embeddings.weight[1]
    for layer in model.vilt.encoder.layer:
        tokens = layer(tokens)[0]
    return embedded, model.vilt.layernorm(tokens)


def test_it_starts_as_the_vit(tmp_path):
    name = tiny_encoders.vit(tmp_path)
    model, processor = vilt.from_image_encoder(tokenizer(), name)
    vit, pixels = ViTModel.from_pretrained(name, add_pooling_layer=False).eval(), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = vit(pixels).last_hidden_state
    torch.testing.assert_close(without_words(model.eval(), pixels)[1], expected)
    assert processor.image_processor.size == {"height": 16, "width": 16}


@torch.no_grad()
def test_the_norm_before_the_layers_of_a_clip_becomes_part_of_its_embeddings(tmp_path):
    tiny_clip.export(tmp_path)
    clip = CLIPModel.from_pretrained(tmp_path)
    norm = clip.vision_model.pre_layrnorm
    nn.init.normal_(norm.weight, 1, 0.2)
    nn.init.normal_(norm.bias)
    clip.save_pretrained(tmp_path)
    model, processor = vilt.from_image_encoder(tokenizer(), str(tmp_path))
    pixels = torch.randn(64, 3, 1, 1).expand(-1, -1, 24, 24)[:, :1].repeat(1, 3, 1, 1)  # grey
    ours = without_words(model.eval(), pixels)[0] - norm.bias
    theirs = norm(clip.vision_model.embeddings(pixels)) - norm.bias
    torch.testing.assert_close(ours[:, 0], theirs[:, 0])
    torch.testing.assert_close(F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1))  # of patches: up to a factor
    assert 0.8 < ours.norm() / theirs.norm() < 1.2
    assert processor.image_processor.image_mean == pytest.approx(MEAN)
    for layer, other in zip(model.vilt.encoder.layer, clip.vision_model.encoder.layers, strict=True):
        torch.testing.assert_close(layer(theirs)[0], other(theirs, None))


def test_an_encoder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--vision_model_name_or_path .* is a ResNetModel, not a ViTModel or a CLIPVis"):
        vilt.from_image_encoder(tokenizer(), tiny_encoders.resnet(tmp_path))


def test_an_export_is_continued_from_and_another_model_is_refused(tmp_path):
    made, processor = tiny.method()
    made.save_pretrained(tmp_path / "ours")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path / "ours")
    model, processor = vilt.from_pretrained(str(tmp_path / "ours"))
    assert model.config.image_size == 16 and processor.tokenizer.model_max_length == texts.LENGTH
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    texts.model().save_pretrained(tmp_path / "bert")
    texts.tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(BadInput, match="bert"):
        vilt.from_pretrained(str(tmp_path / "bert"))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="--patch_size 5 does not divide --image_size 16; these would"):
        vilt.from_scratch(texts.tokenizer(), 16, 5, 32, 1)
    with pytest.raises(BadInput, match="--width 40 is not a multiple of 32"):
        vilt.from_scratch(texts.tokenizer(), 16, 4, 40, 1)
