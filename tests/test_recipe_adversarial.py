"""Recipes with a discriminator, without its loss: one player, and nothing for the other."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = {"use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 32, "save_steps": 0, "probe_dataset": "none"}


@pytest.mark.parametrize(("name", "args"), [("context_encoder", "ContextEncoderArgs"),
                                            ("super_resolution", "SuperResolutionArgs")])  # fmt: skip
def test_without_an_adversarial_loss_there_is_one_player(name, args, tmp_path):
    recipe = runpy.run_path(str(RECIPES / f"{name}.py"))
    recipe["main"](recipe[args](output_dir=str(tmp_path / "run"), adversarial=0.0, **SMALL))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert "adversary_loss" not in line
