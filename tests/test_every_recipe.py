"""Every recipe that trains, without other data than the built-in: it builds its parts, and runs for a step."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mmssl.arguments import recipe
from mmssl.method import Method

RECIPES = Path(__file__).parents[1] / "recipes"
JUDGES = ("affinity", "leaderboard", "transfer")  # they evaluate what the others left
SMALL = {"use_cpu": True, "max_steps": 1, "save_steps": 0, "probe_dataset": "none", "held_out": 20,
         "per_device_train_batch_size": 8, "threads": 1}  # fmt: skip
NAMES = sorted(file.stem for file in RECIPES.glob("*.py") if file.stem not in JUDGES)


def prepared(name: str, place: Path):
    """(main, arguments) of a recipe."""
    main, args = recipe(RECIPES / f"{name}.py")
    known = {field.name for field in dataclasses.fields(args)}
    return main, args(output_dir=str(place / "run"), **{k: v for k, v in SMALL.items() if k in known})


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_what_its_flags_describe(name, tmp_path, monkeypatch):
    main, args = prepared(name, tmp_path)
    handed_over = []
    monkeypatch.setitem(main.__globals__, "pretrain", lambda *given, **settings: handed_over.append(given))
    main(args)
    (_, method, processor, train, optimizers, evaluation), = handed_over  # fmt: skip
    assert isinstance(method, Method) and len(train) and processor is not None and evaluation is not None
    for optimizer in optimizers:
        assert {p for group in optimizer.param_groups for p in group["params"]} <= {*method.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name, tmp_path):
    main, args = prepared(name, tmp_path)
    main(args)
    assert {"README.md", "config.json", "metrics.json"} <= {file.name for file in (tmp_path / "run").iterdir()}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
