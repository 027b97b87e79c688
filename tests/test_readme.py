"""The README's promises: its Python runs as printed, its commands name flags and files that exist."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from PIL import Image

from mmssl.evaluation import retrieval, zero_shot
from mmssl.look import __main__ as look

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TINY = (
    "--image_size 24 --patch_size 12 --vision_width 64 --vision_layers 1 --text_width 64 --text_layers 1 "
    "--projection_dim 16 --vocab_size 600 --max_steps 2 --save_steps 0 --use_cpu"
).split()


def blocks(language: str) -> list[str]:
    fenced = (part.partition("\n") for part in README.split("```")[1::2])
    return [code for tag, _, code in fenced if tag == language]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder as a reader has it after `make demo`, with labelled images of their own beside it."""
    place = tmp_path_factory.mktemp("reader")
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (place / "my_labelled_images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (30, 30), colour).save(place / "my_labelled_images" / name / f"{i}.png")
    recipe = [sys.executable, ROOT / "recipes" / "clip.py", *TINY, "--output_dir", "runs/clip"]
    subprocess.run(recipe, cwd=place, check=True, capture_output=True)
    tiny = "--max_steps 2 --per_device_train_batch_size 5 --save_steps 0 --use_cpu"
    for name, others in (("word2vec", "--batched"), ("simclr", "--probe_dataset none")):
        recipe = [sys.executable, ROOT / "recipes" / f"{name}.py", *f"{tiny} {others}".split()]
        subprocess.run(recipe, cwd=place, check=True, capture_output=True)
    return place


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1][:40])
def test_python_of_the_readme_runs_as_printed(code: str, workspace: Path):
    program = 'import sys; sys.modules["mmssl"] = None\n' + code  # the reader's machine need not have mmssl
    ran = subprocess.run([sys.executable, "-c", program], cwd=workspace, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_every_flag_in_the_readme_exists():
    # the flags of each recipe: those of the one dataclass that it defines
    recipes = {file.stem: runpy.run_path(str(file)) for file in (ROOT / "recipes").glob("*.py")}
    commands = [
        next(value for value in names.values() if is_dataclass(value) and value.__module__ == "<run_path>")
        for names in recipes.values()
    ]
    commands += [retrieval.RetrievalArgs, zero_shot.ZeroShotArgs]
    known = {"--help"} | {f"--{field.name}" for arguments in commands for field in fields(arguments)}
    known |= set(look.parser()._option_string_actions)
    for line in blocks("") + re.findall(r"`(--[^`\n]*)`", README):
        for flag in re.findall(r"(--\w+)", line.split("accelerate launch")[-1].split(".py", 1)[-1]):
            assert flag in known, f"{flag} in {line[:80]}"


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"(?<![\w.])(?:mmssl|recipes|benchmarks|data_scripts)/[\w/]+\.\w+", README):
        assert (ROOT / name).exists() or Path(name).stem == "mine", name  # mine: what a reader would write
