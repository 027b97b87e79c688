"""The MAE recipe as its users run it, end to end; what it says to bad input; and the probe that any recipe takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_encoders
from processes import Processes, at_home
from test_recipes import TINY, write_pairs

RUN = "--max_steps 4 --per_device_train_batch_size 16 --save_steps 0 --use_cpu"
MAE = f"--image_size 24 --patch_size 6 {RUN}"
FEATURES_WITHOUT_MMSSL = """
import sys
sys.modules["mmssl"] = None
from transformers import AutoModel, pipeline
model, report = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert type(model).__name__ == "ViTModel" and not any(report.values()), report
extract = pipeline("image-feature-extraction", model=sys.argv[1])
once, again = (extract(sys.argv[1] + "/figures/example.png", return_tensors=True) for _ in range(2))
assert once.shape == (1, 17, 128) and (once == again).all()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def mae(place) -> str:
    """What the recipe says, run end to end."""
    flags = [
        "--dataset",
        write_pairs(place / "pairs"),
        "--probe_dataset",
        place / "pairs",
        "--output_dir",
        place / "mae",
    ]
    return Processes(at_home, place / "home", "mae", *MAE.split(), *flags, log=place / "mae.txt").succeed()


def test_mae_leaves_everything_that_a_run_leaves_beside_its_baselines(mae, place):
    files = {str(path.relative_to(place / "mae")) for path in (place / "mae").rglob("*") if path.is_file()}
    assert files >= {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "metrics.json",
                     "log.jsonl", "pretraining/config.json", "pretraining/model.safetensors", "figures/loss.png",
                     "figures/reconstructions.png"}  # fmt: skip
    results = json.loads((place / "mae" / "metrics.json").read_text())["results"]
    assert list(results) == ["trained", "untrained", "mean image", "raw pixels", "chance"]
    assert results["trained"].keys() == results["untrained"].keys() == {"reconstruction_loss", "knn_accuracy"}
    assert results["trained"]["reconstruction_loss"] < results["untrained"]["reconstruction_loss"]
    assert "step 0: reconstruction_loss" in mae and "knn_accuracy" in mae


@pytest.mark.slow
def test_stock_transformers_loads_the_encoder_of_a_mae_and_hides_nothing(mae, place):
    clean = subprocess.run(
        [sys.executable, "-c", FEATURES_WITHOUT_MMSSL, place / "mae"], capture_output=True, text=True
    )
    assert clean.returncode == 0, clean.stderr[-2000:]


@pytest.mark.slow
def test_mae_goes_on_from_what_it_left(mae, place):
    flags = ["--dataset", place / "pairs", "--model_name_or_path", place / "mae", "--output_dir", place / "further"]
    Processes(at_home, place / "home", "mae", *RUN.split(), *flags, log=place / "further.txt").succeed()
    before, after = (json.loads((place / name / "metrics.json").read_text())["results"] for name in ("mae", "further"))
    assert list(after) == ["trained", "before training", "mean image"]
    begun, ended = after["before training"]["reconstruction_loss"], before["trained"]["reconstruction_loss"]
    assert begun == pytest.approx(ended, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--patch_size 7", "--patch_size 7 does not divide --image_size 24; these would: [2, 3, 4, 6, 8, 12]"),
        ("--decode_ratio 0", "--decode_ratio is 0.0; it must be above 0"),
        ("--mask_ratio 0.97", "--mask_ratio 0.97 leaves 0 of 16 patches visible"),
        (
            "--model_name_or_path ./none",
            "--image_size, --patch_size have no effect with --model_name",
        ),
        ("--probe_dataset ./none", "./none: no such file or folder"),
        ("--image_column kind", "too many to leave out"),
        ("--size enormous", "invalid choice: 'enormous'"),
    ],
)
def test_mae_refuses_in_one_sentence(flags, said, place, tmp_path):
    flags = [*MAE.split(), "--dataset", write_pairs(place / "pairs"), "--output_dir", tmp_path / "run", *flags.split()]
    job = Processes(at_home, place / "home", "mae", *flags, log=tmp_path / "log.txt")
    assert job.wait() == [2]
    errors = [line for line in job.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0] and "Traceback" not in job.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "bert", "word2vec", "char_rnn"])
def test_every_recipe_takes_a_probe(name, place, tmp_path):
    flags = {
        "clip": [*TINY, "--dataset", write_pairs(place / "pairs"), "--probe_dataset", place / "pairs"],
        "bert": "--max_steps 2 --size tiny --max_seq_length 8 --per_device_train_batch_size 8 --save_steps 0".split()
        + ["--probe_dataset", tiny_encoders.texts(tmp_path / "texts")],
        "word2vec": "--max_steps 2 --per_device_train_batch_size 5 --dimension 8 --batched --save_steps 0".split()
        + ["--probe_dataset", tiny_encoders.texts(tmp_path / "texts")],
        "char_rnn": "--max_steps 2 --hidden_size 16 --per_device_train_batch_size 4 --save_steps 0".split()
        + ["--probe_dataset", tiny_encoders.texts(tmp_path / "texts")],
    }[name]
    flags += ["--output_dir", tmp_path / "run", "--use_cpu"]
    said = Processes(at_home, place / "home", name, *flags, log=tmp_path / "log.txt").succeed()
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
    with_figure = {column for column, values in results.items() if "knn_accuracy" in values}
    raw = "raw pixels" if name == "clip" else "tf-idf"
    assert len(with_figure) == 4 and {"trained", raw, "chance"} <= with_figure
    assert all(0 <= results[column]["knn_accuracy"] <= 100 for column in with_figure) and "knn_accuracy" in said
