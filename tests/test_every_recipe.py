"""Every recipe that trains, without other data than the built-in: it runs for a step, and leaves a model with a card."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"
JUDGES = ("affinity", "leaderboard", "transfer")  # they evaluate what the others left
SMALL = {"use_cpu": True, "max_steps": 1, "save_steps": 0, "probe_dataset": "none", "held_out": 20,
         "per_device_train_batch_size": 8, "threads": 1}  # fmt: skip
NAMES = sorted(file.stem for file in RECIPES.glob("*.py") if file.stem not in JUDGES)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name, tmp_path):
    file = RECIPES / f"{name}.py"
    recipe = runpy.run_path(str(file))
    args = recipe[re.search(r"command\(main, (\w+)", file.read_text()).group(1)]
    known = {field.name for field in dataclasses.fields(args)}
    recipe["main"](args(output_dir=str(tmp_path / "run"), **{k: v for k, v in SMALL.items() if k in known}))
    assert {"README.md", "config.json", "metrics.json"} <= {file.name for file in (tmp_path / "run").iterdir()}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
