"""Recipes whose new ViT begins with the weights of MAE's: they run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from transformers import ViTModel

from mmssl.models import vit_tokens

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = {"use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 16, "save_steps": 0, "probe_dataset": "none",
         "held_out": 20}  # fmt: skip


@pytest.mark.parametrize(("name", "args"), [("ibot", "IbotArgs"), ("ijepa", "IjepaArgs")])
def test_its_positions_are_sines_and_cosines_and_stay_so(name, args, tmp_path):
    recipe = runpy.run_path(str(RECIPES / f"{name}.py"))
    recipe["main"](recipe[args](output_dir=str(tmp_path / "run"), **SMALL))
    positions = ViTModel.from_pretrained(tmp_path / "run").embeddings.position_embeddings
    side = int(positions.shape[1] ** 0.5)
    expected = vit_tokens.sine_cosine_positions(side, positions.shape[2])
    torch.testing.assert_close(positions.detach(), expected.view_as(positions))
