"""Recipes as their users run them: tiny, end to end; and what they say to bad input."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mmssl.arguments import command
from mmssl.data.images import views
from mmssl.data.images.decoded import Decoded
from mmssl.data.images.decoding import decode
from mmssl.evaluation import retrieval, zero_shot
from mmssl.methods.clip import CLIP
from mmssl.models import towers

RECIPE = Path(__file__).parents[1] / "recipes" / "clip.py"
COLOURS, SHAPES = ("red", "green", "blue", "yellow", "black"), ("square", "disc")
SIZES = {"max_steps": 4, "per_device_train_batch_size": 16, "image_size": 24, "patch_size": 12, "vision_width": 64,
         "vision_layers": 1, "text_width": 64, "text_layers": 1, "projection_dim": 16, "vocab_size": 300,
         "save_steps": 0}  # fmt: skip
TINY = [f"--{name}={value}" for name, value in SIZES.items()]


def write_pairs(folder: Path, n: int = 60) -> Path:
    """Coloured shapes with two captions each, and a class."""
    rows = []
    for i in range(n):
        colour, shape = COLOURS[i % 5], SHAPES[i // 5 % 2]
        image = Image.new("RGB", (40, 30), "white")
        draw = {"square": ImageDraw.Draw(image).rectangle, "disc": ImageDraw.Draw(image).ellipse}[shape]
        draw((5 + i % 7, 3, 30, 25), fill=colour)
        rows.append({"image": image, "captions": [f"a {colour} {shape}", f"{shape} in {colour}"], "kind": shape})
    features = {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    features = datasets.Features(features | {"kind": datasets.Value("string")})
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def clip():
    specification = importlib.util.spec_from_file_location("recipe_clip", RECIPE)
    module = importlib.util.module_from_spec(specification)
    sys.modules["recipe_clip"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(autouse=True)
def home(place, monkeypatch) -> Path:
    monkeypatch.setenv("MMSSL_HOME", str(place / "home"))
    return place / "home"


@pytest.fixture(scope="module")
def run(place) -> subprocess.CompletedProcess:
    """The recipe, end to end, in its own process."""
    write_pairs(place / "pairs")
    arguments = [*TINY, "--dataset", place / "pairs", "--label_column", "kind", "--output_dir", place / "run"]
    arguments += ["--bf16", "no"]  # as the evaluation commands compute
    environment = os.environ | {"MMSSL_HOME": str(place / "home")}
    finished = subprocess.run([sys.executable, RECIPE, *arguments], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    return finished


def held_out(place: Path) -> datasets.Dataset:
    rows = datasets.load_dataset("parquet", data_files=str(place / "pairs" / "train.parquet"), split="train")
    return rows.train_test_split(test_size=6, seed=0)["test"]


def printed(output: str) -> dict[str, list[float]]:
    """The figures of a table, by their names."""
    lines = [line.split() for line in output.splitlines() if line.startswith(("image_to", "text_to", "zero_shot"))]
    return {name: list(map(float, figures)) for name, *figures in lines}


def test_clip_leaves_everything_that_a_run_leaves(run, place):
    files = {str(path.relative_to(place / "run")) for path in (place / "run").rglob("*") if path.is_file()}
    assert files >= {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md",
                     "metrics.json", "log.jsonl", "figures/loss.png", "figures/retrieval.png",
                     "figures/similarity.png"}  # fmt: skip
    results = json.loads((place / "run" / "metrics.json").read_text())["results"]
    assert list(results) == ["trained", "untrained", "chance"]
    assert results["trained"].keys() == results["untrained"].keys() <= results["chance"].keys()


def test_clip_prints_its_figures_beside_untrained_and_chance(run, place):
    results = json.loads((place / "run" / "metrics.json").read_text())["results"]
    for name, (trained, untrained, chance) in {k: v for k, v in printed(run.stdout).items() if len(v) == 3}.items():
        expected = (results["trained"][name], results["untrained"][name], results["chance"][name])
        assert (trained, untrained, chance) == pytest.approx(expected, abs=0.051)
    assert {"zero_shot_accuracy", "image_to_text_R@1", "text_to_image_median_rank"} <= printed(run.stdout).keys()


def test_the_next_run_on_the_same_data_decodes_nothing(run, place, home):
    before = sorted((home / "decoded").glob("*/pixels.npy"))
    _, processor = towers.from_pretrained(str(place / "run"))
    Decoded(held_out(place), "image", processor.image_processor)
    assert sorted((home / "decoded").glob("*/pixels.npy")) == before and len(before) == 2


WITHOUT_MMSSL = """
import json, sys
sys.modules["mmssl"] = None  # as where it is not installed
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPVisionModel, pipeline
directory, image = sys.argv[1], Image.open(sys.argv[2])
model, processor = AutoModel.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
inputs = processor(text=["a red square", "a blue disc in"], images=image, return_tensors="pt", padding=True)
with torch.no_grad():
    output = model(**inputs)
    vision = CLIPVisionModel.from_pretrained(directory)(pixel_values=inputs["pixel_values"]).pooler_output
    vision = torch.nn.functional.normalize(model.visual_projection(vision), dim=-1)
    same = torch.allclose(vision, output.image_embeds, atol=1e-6)
classify = pipeline("zero-shot-image-classification", model=directory)
scores = classify(image, candidate_labels=["a red square", "a blue disc in"], hypothesis_template="{}")
try:
    import mmssl
except ImportError:
    print(json.dumps({
        "model": type(model).__name__,
        "same": same,
        "pixels": inputs["pixel_values"].flatten().tolist(),
        "image": output.image_embeds[0].tolist(),
        "probabilities": output.logits_per_image.softmax(1)[0].tolist(),
        "pipeline": {s["label"]: s["score"] for s in scores},
    }))
"""


def test_stock_transformers_loads_the_checkpoint_and_gives_what_was_trained(run, place):
    image = held_out(place)[0]["image"]
    image.save(place / "image.png")
    arguments = [sys.executable, "-c", WITHOUT_MMSSL, place / "run", place / "image.png"]
    clean = subprocess.run(arguments, capture_output=True, text=True)
    assert clean.returncode == 0, clean.stderr
    found = json.loads(clean.stdout.splitlines()[-1])
    assert found["model"] == "CLIPModel" and found["same"]
    # the pixels and the embedding that training would compute
    model, processor = towers.from_pretrained(str(place / "run"))
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    trained = CLIP(model, views.Views([views.WHOLE], mean, std)).eval()
    pixels = torch.from_numpy(decode(image, processor.image_processor))[None]
    shown = trained.views.whole(pixels).flatten()
    torch.testing.assert_close(shown, torch.tensor(found["pixels"]), atol=1e-5, rtol=0)
    with torch.no_grad():
        embedding = trained.embed_image(pixels)[0]
    torch.testing.assert_close(embedding, torch.tensor(found["image"]), atol=1e-5, rtol=0)
    labels = ("a red square", "a blue disc in")
    assert [found["pipeline"][label] for label in labels] == pytest.approx(found["probabilities"], abs=1e-4)


def test_both_evaluation_commands_agree_with_the_recipe(run, place, capsys):
    flags = {"model_name_or_path": str(place / "run"), "dataset": str(place / "pairs"), "use_cpu": True}
    retrieval.main(retrieval.RetrievalArgs(**flags))
    zero_shot.main(zero_shot.ZeroShotArgs(**flags, label_column="kind"))
    ours, found = printed(run.stdout), printed(capsys.readouterr().out)
    assert found.keys() == ours.keys()
    for name, figures in found.items():
        expected = ours[name] if len(ours[name]) < 3 else [ours[name][0], ours[name][2]]  # without the untrained model
        assert figures == pytest.approx(expected, abs=0.1), name


def test_clip_trains_from_a_stream(clip, place, tmp_path, capsys, monkeypatch):
    write_pairs(place / "pairs")
    arguments = [*TINY, "--dataset", place / "pairs", "--streaming", "--held_out", 10, "--output_dir", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["clip.py", *map(str, arguments)])
    command(clip.main, clip.ClipArgs)
    assert "6 images held out" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 4


# bad input


def refuse(clip, arguments: list, capsys, monkeypatch) -> str:
    """What the recipe says, in one line, when it exits with status 2."""
    monkeypatch.setattr(sys, "argv", ["clip.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        command(clip.main, clip.ClipArgs)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said
    return errors[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--image_column photo", "--image_column photo: the data has no such column, only image, captions, kind"),
        ("--image_column kind", "too many to leave out"),
        ("--image_column captions", "--image_column captions holds List(Value('string')), not images"),
        ("--caption_column words", "--caption_column words: the data has no such column, only image, captions, kind"),
        ("--label_column class", "--label_column class: the data has no such column, only image, captions, kind"),
        ("--per_device_train_batch_size 64", "54 samples, fewer than one global batch of 64"),
        ("--learning_rat 1", "--learning_rat 1 (did you mean --learning_rate"),
        ("--model_name_or_path ./no/such", "--image_size, --vision_width, --vision_layers, --text_width"),
        (
            "--vision_model_name_or_path a",
            "--vision_model_name_or_path and --text_model_name_or_path must be given together",
        ),
        ("--patch_size 7", "--patch_size 7 does not divide --image_size 24"),
        ("--dataset no/such/folder", "--dataset no/such/folder: no such file or folder"),
    ],
)
def test_clip_refuses_in_one_sentence_and_leaves_nothing(flags, said, clip, place, tmp_path, capsys, monkeypatch):
    write_pairs(place / "pairs")
    arguments = [*TINY, "--dataset", place / "pairs", "--output_dir", tmp_path / "run", *flags.split()]
    assert said in refuse(clip, arguments, capsys, monkeypatch)
    assert not (tmp_path / "run").exists()


def test_clip_refuses_a_folder_without_captions(clip, tmp_path, capsys, monkeypatch):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    arguments = [*TINY, "--dataset", tmp_path / "photos", "--output_dir", tmp_path / "run"]
    said = refuse(clip, arguments, capsys, monkeypatch)
    assert (
        "the images have no captions: put a text file beside each (cat.jpg, cat.txt), or a table metadata.csv" in said
    )


def test_clip_refuses_where_too_many_images_are_broken_and_names_them(clip, tmp_path, capsys, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(10):
        (photos / f"{i}.png").write_bytes(b"broken")
        (photos / f"{i}.txt").write_text("a caption")
    said = refuse(clip, [*TINY, "--dataset", photos, "--output_dir", tmp_path / "run"], capsys, monkeypatch)
    assert ".png UnidentifiedImageError" in said and "too many to leave out" in said


def test_clip_refuses_a_directory_that_holds_a_finished_run(run, clip, place, capsys, monkeypatch):
    before = (place / "run" / "metrics.json").read_bytes()
    arguments = [*TINY, "--dataset", place / "pairs", "--output_dir", place / "run"]
    said = refuse(clip, arguments, capsys, monkeypatch)
    assert "already holds a finished run" in said and "--overwrite_output_dir" in said
    assert (place / "run" / "metrics.json").read_bytes() == before
