"""The recipe of domain adaptation end to end, for images and sounds: what it leaves loads plainly as a classifier."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import tiny_encoders
from accelerate import PartialState

from mmssl.errors import BadInput

RECIPE = Path(__file__).parents[1] / "recipes" / "domain_adaptation.py"


@pytest.fixture(scope="module")
def recipe():
    PartialState(cpu=True)
    return runpy.run_path(str(RECIPE), run_name="domain_adaptation")


@pytest.mark.parametrize(
    ("encoder", "data", "alignment"),
    [("vit", "images", "dann"), ("wav2vec", "sounds", "coral"), ("bert", "texts", "none")],
)
def test_it_leaves_a_classifier_of_the_target(recipe, encoder, data, alignment, tmp_path):
    flags = {"model_name_or_path": getattr(tiny_encoders, encoder)(tmp_path / "encoder"), "use_cpu": True}
    flags |= {"dataset": getattr(tiny_encoders, data)(tmp_path / "source"), "output_dir": str(tmp_path / "out")}
    flags |= {"target_dataset": getattr(tiny_encoders, data)(tmp_path / "target", 50), "alignment": alignment}
    args = recipe["AdaptationArgs"](**flags, max_steps=2, save_steps=0, per_device_train_batch_size=8, bf16="no")
    recipe["main"](args)  # raises if the export does not load in a fresh interpreter
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert results["trained"].keys() == results["chance"].keys() == {"source_accuracy", "target_accuracy"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"][0].endswith("Classification") and len(config["id2label"]) in (2, 3)
    assert (tmp_path / "out" / "figures" / "domains.png").exists()


def test_another_modality_is_refused(recipe, tmp_path):
    flags = {"dataset": tiny_encoders.texts(tmp_path / "texts"), "output_dir": str(tmp_path / "out"), "use_cpu": True}
    with pytest.raises(BadInput, match="input"):
        recipe["main"](recipe["AdaptationArgs"](**flags))
