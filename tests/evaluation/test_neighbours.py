"""The figures of held-out images."""

from __future__ import annotations

import pytest
import torch
from tiny import ijepa, simclr, super_resolution, vqvae
from transformers import ViTImageProcessorPil

from mmssl import figures
from mmssl.data.images.pictures import Undecoded
from mmssl.evaluation.neighbours import Neighbours


@pytest.mark.parametrize("made", [vqvae.method, super_resolution.method, ijepa.method])
def test_neighbours_are_near_by_patches_where_the_class_token_is_not_trained(made, tmp_path, monkeypatch):
    method, drawn = made().eval(), []
    torch.nn.init.zeros_(method.exported().pooler.dense.weight)  # all class tokens are alike
    twins = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    evaluation = Neighbours(Undecoded(twins.byte(), torch.arange(8)), processor, 8)
    monkeypatch.setattr(figures, "picture_grid", lambda columns, file: drawn.append(columns))
    assert list(evaluation.draw(method, tmp_path, {})) == ["neighbours.png"]
    assert torch.equal(drawn[0]["1"], drawn[0]["image"])


def test_where_the_class_token_is_trained_its_attention_is_drawn(tmp_path):
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    evaluation = Neighbours(Undecoded(images, torch.arange(4)), processor, 4)
    drawn = evaluation.draw(simclr.VARIANTS["vit"]().method.eval(), tmp_path, {})
    assert list(drawn) == ["neighbours.png", "attention.png"]
