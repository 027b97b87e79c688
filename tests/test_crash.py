"""A real recipe, killed again and again: in the end not one bit of difference."""

from __future__ import annotations

import json
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import Processes, recipe

from mmssl.data import sources
from mmssl.data.built_in import emoji
from mmssl.data.text.tokens import train_clip_tokenizer
from mmssl.models import towers

STEPS = 45  # 27 an epoch: from the middle of one to the middle of another
TINY = [
    "--per_device_train_batch_size=31", "--gradient_accumulation_steps=2",
    "--dataloader_num_workers=1", f"--max_steps={STEPS}", "--save_steps=3", "--logging_steps=1", "--held_out=20",
    "--resume_from_checkpoint=auto", "--report_to=none", "--use_cpu", "--bf16=no",
]  # fmt: skip


@pytest.fixture(scope="module")
def beginning(tmp_path_factory) -> Path:
    """A tiny CLIP with dropout, to train from."""
    directory = tmp_path_factory.mktemp("beginning")
    captions = [text for row in sources.load("emoji")["train"].select(range(200))["captions"] for text in row]
    tokenizer = train_clip_tokenizer(captions, 400)
    model, processor = towers.from_scratch(tokenizer, 24, 12, 64, 1, 64, 1, 32)
    for tower in (model.config.vision_config, model.config.text_config):
        tower.attention_dropout = 0.2
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def test_flags_of_the_crash_test_train_with_dropout_from_the_middle_of_an_epoch(beginning):
    model, _ = towers.from_pretrained(str(beginning))
    assert model.vision_model.encoder.layers[0].self_attn.dropout == 0.2
    assert STEPS % ((emoji.EMOJI - emoji.HELD_OUT) // 62) > 0


def last_step(output_dir: Path) -> int:
    try:
        return json.loads((output_dir / "log.jsonl").read_text().rstrip("\n").rpartition("\n")[2])["step"]
    except (OSError, ValueError, KeyError):
        return 0


def half_saved(output_dir: Path) -> dict[Path, float]:
    """What saves have begun and not finished, and since when."""
    found = {}
    for path in output_dir.glob("checkpoints/partial_*"):
        with suppress(FileNotFoundError):  # finished in between
            found[path] = path.stat().st_ctime
    return found


def kill_at(run: Processes, output_dir: Path, step: int, during_save: bool, draw: random.Random) -> bool:
    """SIGKILL some moment after `step`; or at the first save after it. True where that save was left unfinished."""
    while run.alive and last_step(output_dir) < step:
        time.sleep(0.002)
    before = half_saved(output_dir)
    if during_save:
        while run.alive and half_saved(output_dir).items() <= before.items():
            pass
        time.sleep(draw.uniform(0, 0.01))
    else:
        time.sleep(draw.uniform(0, 0.2))
    assert run.alive, f"the run ended before it could be killed:\n{run.output}"
    run.kill()
    return not half_saved(output_dir).items() <= before.items()


def same_bits_after_kills(beginning: Path, place: Path, world: int, kills: int) -> int:
    """Returns how many saves were cut in two."""
    flags = [*TINY, f"--model_name_or_path={beginning}"]
    whole = Processes(recipe, "clip", *flags, f"--output_dir={place / 'whole'}", log=place / "whole.txt", world=world)
    killed, draw, cut = place / "killed", random.Random(world), 0
    for i, step in enumerate(sorted(draw.sample(range(1, STEPS - 6), kills))):
        run = Processes(recipe, "clip", *flags, f"--output_dir={killed}", log=place / f"killed_{i}.txt", world=world)
        cut += kill_at(run, killed, step, during_save=i % 2 == 1, draw=draw)
    run = Processes(recipe, "clip", *flags, f"--output_dir={killed}", log=place / "last.txt", world=world)
    assert f"{world} process" in whole.succeed()
    assert "resumed from" in run.succeed()
    assert (killed / "model.safetensors").read_bytes() == (place / "whole" / "model.safetensors").read_bytes()
    return cut


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_run_killed_at_three_moments_ends_with_the_bits_of_one_never_stopped(beginning, tmp_path, world):
    same_bits_after_kills(beginning, tmp_path, world, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_run_killed_at_twenty_moments_ends_with_the_bits_of_one_never_stopped(beginning, tmp_path, world):
    assert same_bits_after_kills(beginning, tmp_path, world, kills=20) > 0
