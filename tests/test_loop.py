"""What a run promises: it resumes exactly, leaves when told to, and never goes wrong in silence."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import tiny_clip
import torch
from device import TOLERANCE
from PIL import Image
from processes import Processes
from safetensors.torch import load_file
from small import Numbers, Small, adam, arguments, bits, sgd
from test_checkpoint import rewritten
from tiny import bert, causal_lm
from torch import nn

from mmssl.data.image_text import pairs
from mmssl.data.loader import Loader
from mmssl.data.text import documents, packed
from mmssl.device import cores
from mmssl.errors import BadInput
from mmssl.figures import loss_curve
from mmssl.method import Output
from mmssl.methods.bert import BERT
from mmssl.training import steps
from mmssl.training.checkpoint import NonFinite, complete_checkpoints, damage
from mmssl.training.log import Log
from mmssl.training.loop import train
from mmssl.training.output_dir import OutputDir
from mmssl.training.signals import Signals
from mmssl.training.start import start


def lines(output_dir: Path) -> list[dict]:
    if not (output_dir / Log.FILE).exists():
        return []
    return [json.loads(line) for line in (output_dir / Log.FILE).read_text().splitlines()]


def run(
    output_dir: Path, step=steps.standard, workers: int = 0, noise: float = 0.5, optimizer=adam, evaluate=None,
    samples: int = 50, **flags,
) -> Small:  # fmt: skip
    """Train a new Small; 50 samples are 4 optimizer steps an epoch."""
    args = arguments(output_dir, gradient_accumulation_steps=2, **flags)
    method = Small(dropout=0.3)
    loader = Loader(Numbers(samples, noise), args.per_device_train_batch_size, num_workers=workers)
    method.summary = train(method, loader, args, [optimizer(method, args.learning_rate)], step, evaluate)
    return method


@pytest.mark.parametrize("step", [1, 3, 4, 6, 9, 10])
def test_run_resumed_from_any_step_has_the_bits_of_one_never_stopped(tmp_path, step):
    whole = run(tmp_path / "whole", save_steps=1, save_total_limit=10)
    checkpoint = tmp_path / "whole" / "checkpoints" / f"step_{step:08d}"
    resumed = run(tmp_path / "resumed", resume_from_checkpoint=str(checkpoint))
    assert bits(resumed) == bits(whole)
    assert resumed.summary.samples_seen == whole.summary.samples_seen == 120


def test_resume_is_exact_on_another_number_of_workers(tmp_path):
    whole = run(tmp_path / "whole", workers=2, save_steps=3)
    resumed = run(
        tmp_path / "whole", workers=0, resume_from_checkpoint=str(tmp_path / "whole/checkpoints/step_00000009")
    )
    assert bits(resumed) == bits(whole)
    assert not [w for w in resumed.summary.warnings if "resumed" in w]


@pytest.mark.parametrize("optimizer", [sgd, lambda m, lr: torch.optim.SGD(m.parameters(), lr, momentum=0.9)])
def test_optimizers_without_moments_and_with_one_resume_exactly(tmp_path, optimizer):
    whole = run(tmp_path, optimizer=optimizer, save_steps=7)
    resumed = run(tmp_path, optimizer=optimizer, resume_from_checkpoint=str(tmp_path / "checkpoints/step_00000007"))
    assert bits(resumed) == bits(whole)


def test_log_of_a_resumed_run_has_each_step_once(tmp_path):
    run(tmp_path, save_steps=4)
    run(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoints/step_00000008"))
    logged = [line["step"] for line in lines(tmp_path)]
    assert logged == sorted(set(logged)) and logged[-1] == 10


def test_evaluation_at_the_checkpoint_that_a_run_resumes_from_is_logged_once(tmp_path):
    flags = {"save_steps": 4, "eval_steps": 4, "evaluate": lambda method: {"score": float(torch.rand(()))}}
    whole = run(tmp_path, **flags)
    logged = lines(tmp_path)
    for step in (8, 10):
        resumed = run(tmp_path, resume_from_checkpoint=str(tmp_path / f"checkpoints/step_{step:08d}"), **flags)
        assert bits(resumed) == bits(whole) and resumed.summary.evaluations == whole.summary.evaluations
        assert [(line["step"], line.get("eval_score")) for line in lines(tmp_path)] == [
            (line["step"], line.get("eval_score")) for line in logged
        ]


def test_each_epoch_starts_once_and_the_first_before_the_evaluation_at_step_0(tmp_path):
    seen = []

    class Relabelled(Small):
        def start_epoch(self, epoch: int, accelerator, optimizers) -> None:
            assert self.training
            seen.append(epoch)

    def relabelled(**flags) -> Small:
        method, args = Relabelled(), arguments(tmp_path, save_steps=4, save_total_limit=3, max_steps=12, **flags)
        method.eval()  # as a checkpoint is loaded
        train(method, Loader(Numbers(), 6), args, [adam(method)], evaluate=lambda _: seen.append("evaluation") or {})
        return method

    whole = relabelled()
    assert seen == [0, "evaluation", 1, "evaluation"]
    seen.clear()
    assert bits(relabelled(resume_from_checkpoint=str(tmp_path / "checkpoints/step_00000004"))) == bits(whole)
    assert seen == [1, "evaluation"]


def test_log_that_a_power_cut_or_a_full_disk_damaged_is_gone_on_with_and_drawn(tmp_path):
    run(tmp_path, save_steps=4)
    file = tmp_path / Log.FILE
    file.write_bytes(b'{"step": 2, "lo\n\xff\xfe\n12\n{}\n\x00\x00' + file.read_bytes())
    run(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoints/step_00000008"))
    assert [line["step"] for line in lines(tmp_path)] == [4, 6, 8, 10]
    file.write_bytes(file.read_bytes() + b'{"step": 1')
    loss_curve(file, tmp_path / "loss.png", "chance")


def test_launcher_cannot_change_what_the_flags_say(tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", optimizer=sgd)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert bits(run(tmp_path / "launched", optimizer=sgd)) == bits(plain)


def test_flag_that_is_a_list_reaches_the_tracker(tmp_path):
    pytest.importorskip("tensorboard")
    args = arguments(tmp_path, report_to="tensorboard", max_steps=1)
    args.conv_kernel = [8, 4]
    method = Small()
    train(method, Loader(Numbers(), 6), args, [sgd(method)])
    assert "conv_kernel: '[8, 4]'" in next(tmp_path.glob("logs/**/hparams.yml")).read_text()


def test_output_directory_that_cannot_be_written_is_refused_before_anything_else(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        with pytest.raises(BadInput, match=f"--output_dir .*{place} cannot be written to .*; choose another"):
            start(arguments(tmp_path / place))


def test_changed_learning_rate_takes_effect_on_resume_and_is_said(tmp_path):
    before = run(tmp_path, save_steps=10)
    flags = {"resume_from_checkpoint": "auto", "max_steps": 11, "learning_rate": 1e-30, "lr_scheduler_type": "constant"}
    after = run(tmp_path, **flags)
    assert bits(after.student) == bits(before.student)
    said = [w for w in after.summary.warnings if w.startswith("resumed with other flags")]
    assert len(said) == 1 and "learning_rate 0.01 -> 1e-30" in said[0] and "max_steps 10 -> 11" in said[0]


def test_a_second_resume_says_its_own_changes(tmp_path):
    run(tmp_path, save_steps=10)
    run(tmp_path, resume_from_checkpoint="auto", max_steps=11, save_steps=11)
    run_again = run(tmp_path, resume_from_checkpoint="auto", max_steps=12)
    assert [("10 -> 11" in w, "11 -> 12" in w) for w in run_again.summary.warnings] == [(True, False), (False, True)]


def test_another_number_of_samples_is_said_on_resume_but_not_where_an_earlier_version_kept_none(tmp_path):
    run(tmp_path, save_steps=5)
    flags = {"samples": 51, "resume_from_checkpoint": str(tmp_path / "checkpoints" / "step_00000005")}
    [said] = [w for w in run(tmp_path, **flags).summary.warnings if "resumed" in w]
    assert said.startswith("resumed on 51 training samples instead of 50: ")
    rewritten(tmp_path / "checkpoints" / "step_00000005", lambda state: state["progress"].pop("samples"))
    assert not [w for w in run(tmp_path, **flags).summary.warnings if "resumed" in w]


def test_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, capsys):
    whole = run(tmp_path, save_steps=5)
    file = tmp_path / "checkpoints/step_00000010/method.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    resumed = run(tmp_path, resume_from_checkpoint="auto", save_steps=5)
    said = capsys.readouterr().err
    assert "step_00000010 is damaged (method.safetensors does not have the checksum recorded for it)" in said
    assert "resumed from" in said and "step_00000005" in said
    assert bits(resumed) == bits(whole)


def test_half_written_checkpoint_is_not_resumed_from(tmp_path):
    whole = run(tmp_path, save_steps=5)
    newest = tmp_path / "checkpoints/step_00000010"
    newest.rename(tmp_path / "checkpoints/partial_00000010")
    OutputDir(tmp_path).adopt((tmp_path / "checkpoints/partial_00000010").iterdir())  # as a save in progress has it
    assert bits(run(tmp_path, resume_from_checkpoint="auto", save_steps=5)) == bits(whole)
    assert not list(tmp_path.glob("checkpoints/partial_*"))


def test_nothing_but_damaged_checkpoints_is_an_error_not_a_fresh_start(tmp_path):
    run(tmp_path, save_steps=10)
    (tmp_path / "checkpoints/step_00000010/state.json").write_text("{")
    with pytest.raises(BadInput, match="every checkpoint in .* is damaged; start again with --overwrite_output_dir"):
        run(tmp_path, resume_from_checkpoint="auto")


def signal_at(step: int, number: int):
    """A step function that is interrupted."""
    taken = 0

    def interrupted(*given) -> Output:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), number)
        return steps.standard(*given)

    return interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves_and_says_how_to_go_on(tmp_path, capsys, number):
    whole = run(tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as left:
        run(tmp_path / "left", signal_at(5, number), save_steps=100)
    assert left.value.code == 128 + number
    assert (
        "saved at step 5. Continue with the same command and --resume_from_checkpoint auto" in capsys.readouterr().err
    )
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert bits(run(tmp_path / "left", resume_from_checkpoint="auto")) == bits(whole)


@pytest.mark.parametrize("step, at", [(0, 1), (4, 5), (10, 10)])
def test_signal_during_an_evaluation_saves_and_leaves_as_soon_as_it_has_ended(tmp_path, capsys, step, at):
    seen = []

    def interrupted(method) -> dict[str, float]:
        seen.append(step)
        if len(seen) == 1 + step // 4 + (step == 10):
            os.kill(os.getpid(), signal.SIGTERM)
        return {"score": 1.0}

    flags = {"save_steps": 100, "eval_steps": 4}
    with pytest.raises(SystemExit):
        run(tmp_path / "left", evaluate=interrupted, **flags)
    assert f"SIGTERM: saved at step {at}. Continue with" in capsys.readouterr().err
    whole = run(tmp_path / "whole", evaluate=lambda method: {"score": 1.0}, **flags)
    resumed = run(tmp_path / "left", evaluate=lambda method: {"score": 1.0}, resume_from_checkpoint="auto", **flags)
    assert bits(resumed) == bits(whole) and resumed.summary.evaluations == whole.summary.evaluations


def test_second_ctrl_c_kills_but_the_launchers_copy_of_the_first_does_not():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        signals.at -= Signals.COPIES
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def job(
    output_dir: Path, pause: float = 0.0, max_file_bytes: int = 0, random: float = 0.3, optimizer=adam, **flags
) -> None:
    """A run in a process of its own. pause: seconds, in each step. max_file_bytes: beyond it, the disk is full.
    random: dropout and noise."""

    def step(*given) -> Output:
        time.sleep(pause)
        return steps.standard(*given)

    if max_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    args = arguments(output_dir, **({"ddp_find_unused_parameters": True, "save_steps": 100} | flags))
    start(args)
    method = Small(dropout=random)
    loader = Loader(Numbers(noise=random), args.per_device_train_batch_size, num_workers=1)
    train(method, loader, args, [optimizer(method)], step)


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sigterm_to_a_whole_job_with_data_workers_saves_and_resumes_exactly(tmp_path, world):
    whole, left = tmp_path / "whole", tmp_path / "left"
    call = {"world": world, "max_steps": 40}
    Processes(job, whole, **call, log=tmp_path / "whole.txt").succeed()
    first = Processes(job, left, **call, pause=0.05, log=tmp_path / "first.txt")
    while first.alive and not lines(left):
        time.sleep(0.01)
    first.send(signal.SIGTERM)
    assert first.wait() == [128 + signal.SIGTERM] * world, first.output
    second = Processes(job, left, **call, resume_from_checkpoint="auto", log=tmp_path / "second.txt")
    assert f"{world} process" in second.succeed() and "resumed from" in second.output
    last = "checkpoints/step_00000040/method.safetensors"
    assert (left / last).read_bytes() == (whole / last).read_bytes()


def in_place_job(kind: str, data: Path, output_dir: Path, **flags) -> None:
    """On data that is read where it lies, five steps an epoch."""
    args = arguments(output_dir, max_steps=7, **flags)
    start(args)
    if kind == "pairs":
        method, processor = tiny_clip.build()
        found = pairs.find(str(data), None, None, held_out=4, streaming=True)
        rows = found.training(processor, 20, 0, seed=1, word_dropout=0.3, word_noise=0.3, captions_per_image=2)
    elif kind == "next tokens":
        texts, _ = documents.load(str(data), held_out=4, streaming=True)
        method, around = causal_lm.tiny("llama").method, ([], [causal_lm.tokenizer().eos_token_id])
        rows, _ = packed.next_tokens(texts, documents.some(texts), causal_lm.tokenizer(), causal_lm.LENGTH, around)
    else:
        tokenizer = bert.tokenizer()
        method = BERT(bert.model(), tokenizer)  # with dropout
        rows = packed.train_and_held_out(*documents.load(str(data), held_out=4, streaming=True), tokenizer, bert.LENGTH)
        rows = rows[0]
    train(method, Loader.from_args(rows, args), args, [adam(method)])


def write_in_place(kind: str, folder: Path) -> Path:
    folder.mkdir()
    texts = [f"{color} {shape}" for color in ("a red", "a blue", "two green") for shape in ("square", "circle")]
    if kind == "pairs":
        images = [Image.new("RGB", (24, 24), (4 * i, 0, 99)) for i in range(64)]
        rows = {"image": images, "caption": [[texts[i % 6], texts[i % 5]] for i in range(64)]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / "a.parquet", batch_size=8)
    elif kind == "parquet":
        rows = [" ".join(bert.WORDS[(i + j) % 12] for j in range(14)) + f" {i}" for i in range(64)]
        datasets.Dataset.from_dict({"text": rows}).to_parquet(folder / "a.parquet", batch_size=8)
    else:
        rows = [" ".join(bert.WORDS[(i * j) % 12] for j in range(14)) for i in range(64)]
        (folder / "a.txt").write_text("\n\n".join(rows))
    return folder


@pytest.mark.parametrize(
    ("kind", "world", "workers"),
    [
        ("pairs", 1, 0),
        ("pairs", 2, 2),
        ("parquet", 1, 0),
        ("parquet", 2, 2),
        ("text", 1, 2),
        ("text", 2, 0),
        ("next tokens", 2, 2),
    ],
)
def test_run_on_data_read_where_it_lies_resumes_exactly(kind, world, workers, tmp_path):
    data = write_in_place(kind, tmp_path / "data")
    flags = {"dataloader_num_workers": workers, "world": world, "log": tmp_path / "log.txt"}
    flags |= {"per_device_train_batch_size": 12 // world}
    Processes(in_place_job, kind, data, tmp_path / "whole", **flags, save_steps=3, save_total_limit=9).succeed()
    middle = str(tmp_path / "whole/checkpoints/step_00000003")
    Processes(
        in_place_job, kind, data, tmp_path / "again", **flags, save_steps=7, resume_from_checkpoint=middle
    ).succeed()
    last = "checkpoints/step_00000007/method.safetensors"
    assert (tmp_path / "again" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def wide_job(output_dir: Path, **flags) -> None:
    """Several buckets of gradients."""
    args = arguments(output_dir, max_steps=6, save_steps=3, **flags)
    start(args)
    method = Small()
    method.unused = nn.Identity()
    method.student = nn.Sequential(nn.Linear(6, 700), nn.Tanh(), nn.Linear(700, 700), nn.Tanh(), nn.Linear(700, 4))
    method.teacher = copy.deepcopy(method.student).requires_grad_(False)
    train(method, Loader(Numbers(), args.per_device_train_batch_size), args, [adam(method)])


@pytest.mark.slow
def test_three_processes_resume_exactly_though_they_sum_in_buckets(tmp_path):
    flags = {"per_device_train_batch_size": 3, "log": tmp_path / "log.txt", "world": 3}
    Processes(wide_job, tmp_path / "whole", **flags).succeed()
    middle = str(tmp_path / "whole/checkpoints/step_00000003")
    Processes(wide_job, tmp_path / "resumed", **flags, resume_from_checkpoint=middle).succeed()
    last = "checkpoints/step_00000006/method.safetensors"
    assert (tmp_path / "resumed" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_full_disk_at_a_save_is_said_and_the_last_good_checkpoint_stays_whole(tmp_path):
    Processes(job, tmp_path / "run", save_steps=5, max_steps=5, log=tmp_path / "a.txt").succeed()
    good = tmp_path / "run/checkpoints/step_00000005"
    biggest = max(file.stat().st_size for file in good.iterdir())
    flags = {"save_steps": 5, "max_steps": 10, "resume_from_checkpoint": "auto", "max_file_bytes": biggest - 1}
    full = Processes(job, tmp_path / "run", **flags, log=tmp_path / "b.txt")
    assert full.wait() == [1]
    assert "step_00000010 could not be written: " in full.output and "File too large" in full.output
    assert f"The last good checkpoint is {good}. Mend that, then continue with" in full.output
    assert complete_checkpoints(good.parent) == [good] and damage(good) is None
    assert not list(good.parent.glob("partial_*"))


def test_resume_on_another_number_of_processes_sees_the_same_samples_and_says_what_differs(tmp_path):
    flags = {"save_steps": 5, "random": 0.0, "optimizer": sgd}
    one = Processes(job, tmp_path / "one", **flags, log=tmp_path / "one.txt")
    one.succeed()
    flags |= {"resume_from_checkpoint": str(tmp_path / "one/checkpoints/step_00000005")}
    two = Processes(job, tmp_path / "two", **flags, per_device_train_batch_size=3, world=2, log=tmp_path / "two.txt")
    assert "resumed on another number of processes: 1 -> 2" in two.succeed()
    last = "checkpoints/step_00000010/method.safetensors"
    a, b = load_file(tmp_path / "one" / last), load_file(tmp_path / "two" / last)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=TOLERANCE, atol=TOLERANCE / 10)


BAD_STEP = 5  # from 1
BAD_ROW = int(list(Loader(Numbers(), 6).epoch(0))[BAD_STEP - 1]["index"][0])


class Poisoned(Numbers):
    """One row is not a number."""

    def __getitem__(self, i: int) -> dict:
        row = super().__getitem__(i)
        return row | {"x": row["x"] * float("nan")} if i == BAD_ROW else row


def poisoned(output_dir: Path, step=steps.standard, **flags) -> Small:
    args = arguments(output_dir, **({"logging_steps": 3, "max_steps": 16, "save_steps": 1} | flags))
    method = Small()
    method.optimizer = adam(method)
    loader = Loader(Poisoned(), args.per_device_train_batch_size)
    method.summary = train(method, loader, args, [method.optimizer], step)
    return method


def test_non_finite_loss_stops_the_run_naming_step_samples_and_a_checkpoint_that_is_good(tmp_path):
    with pytest.raises(NonFinite) as stopped:
        poisoned(tmp_path)
    text = str(stopped.value)
    assert f"loss and grad_norm not finite at step {BAD_STEP}, samples " in text
    assert str(BAD_ROW) in text.split("samples ")[1].split(".")[0].split(", ")
    kept = complete_checkpoints(tmp_path / "checkpoints")[-1]
    assert kept.name == f"step_{BAD_STEP - 1:08d}" and f"The last good checkpoint is {kept}." in text
    assert damage(kept) is None
    assert all(value.isfinite().all() for value in load_file(kept / "method.safetensors").values())


def poisoned_job(output_dir: Path, **flags) -> None:
    flags |= {"per_device_train_batch_size": 3, "ddp_find_unused_parameters": True, "logging_steps": 3}
    args = arguments(output_dir, save_steps=4, max_steps=16, **flags)
    start(args)
    method = Small()
    train(method, Loader(Poisoned(), 3), args, [adam(method)])


@pytest.mark.parametrize("allowed", [0, 2])
def test_nan_on_one_of_two_processes_stops_both_or_is_skipped_by_both(tmp_path, allowed):
    two = Processes(poisoned_job, tmp_path, max_skipped_steps=allowed, log=tmp_path / "log.txt", world=2)
    assert two.wait() == ([0, 0] if allowed else [1, 1])
    assert f"not finite at step {BAD_STEP}, samples " in two.output and str(BAD_ROW) in two.output
    kept = load_file(complete_checkpoints(tmp_path / "checkpoints")[-1] / "method.safetensors")
    assert all(value.isfinite().all() for value in kept.values())


def test_skipped_step_leaves_weights_moments_teacher_and_queue_as_they_were(tmp_path, capsys):
    skipped = []

    def compared(method, micro_batches, optimizers, accelerator, max_grad_norm):
        was = copy.deepcopy(method.state_dict()), copy.deepcopy(optimizers[0].state_dict()["state"])
        output = steps.standard(method, micro_batches, optimizers, accelerator, max_grad_norm)
        skipped.append(not output.loss.isfinite())
        if skipped[-1]:
            now = optimizers[0].state_dict()["state"]
            moments = all(torch.equal(was[1][i][k], v) for i, state in now.items() for k, v in state.items())
            assert moments and all(torch.equal(was[0][k], v) for k, v in method.state_dict().items() if k != "queue")
        return output

    method = poisoned(tmp_path, compared, max_skipped_steps=2)
    assert sum(skipped) == method.summary.skipped_steps == 2  # once in each of two epochs
    assert all(value.isfinite().all() for value in method.state_dict().values())  # the queue too, which forward moves
    assert f"not finite at step {BAD_STEP}, samples" in capsys.readouterr().err
    assert all(math.isfinite(line.get("loss", 0.0)) for line in lines(tmp_path))


def test_more_skipped_steps_than_allowed_stop_the_run(tmp_path):
    with pytest.raises(NonFinite, match="grad_norm not finite at step (9|1[0-6])"):
        poisoned(tmp_path, max_skipped_steps=1)


def test_weight_that_is_not_finite_is_never_saved(tmp_path):
    def overflowing(method, *given) -> Output:
        output = steps.standard(method, *given)
        with torch.no_grad():
            method.student[0].weight[0, 0] = float("inf")
        return output

    with pytest.raises(NonFinite, match=r"student.0.weight is not finite after step 1; not saved"):
        run(tmp_path, overflowing, save_steps=1)
    assert complete_checkpoints(tmp_path / "checkpoints") == []


def test_metric_that_is_not_finite_does_not_stop_a_run(tmp_path):
    def undefined(*given) -> Output:
        output = steps.standard(*given)
        output.metrics["share"] = torch.tensor(0.0) / 0
        return output

    run(tmp_path, undefined)
    assert "share" not in lines(tmp_path)[-1] and "loss" in lines(tmp_path)[-1]


@pytest.mark.parametrize("asked, flags, answer", [
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "accelerate is configured for DEEPSPEED, which is not supported"),
    ({}, {}, "accelerate is configured for FSDP 1, but only FSDP 2 is supported"),
    ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, {}, "--fsdp_offload_params is not supported"),
    ({"FSDP_VERSION": "2"}, {"torch_compile": "auto"}, "--torch_compile auto is not supported with --use_fsdp"),
])  # fmt: skip
def test_sharding_in_another_way_than_fsdp2_is_refused_not_ignored(asked, flags, answer, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=answer):
        start(arguments(tmp_path, **flags))


def test_run_no_better_than_trivial_says_so_and_a_better_one_does_not(tmp_path):
    method = Small()
    loader = Loader(Numbers(), 6)
    bad = train(method, loader, arguments(tmp_path / "bad", learning_rate=1e-9), [adam(method, 1e-9)], worthless)
    assert len(bad.warnings) == 1 and "no better than the trivial solution's" in bad.warnings[0]
    good = train(method, loader, arguments(tmp_path / "good"), [adam(method)])
    assert good.warnings == []


def test_trivial_loss_is_the_mean_over_the_same_steps_as_the_loss(tmp_path):
    taken = []

    def counted(*given) -> Output:
        output = steps.standard(*given)
        taken.append(len(taken) + 1.0)
        output.loss, output.trivial_loss = torch.tensor(taken[-1]), 2 * taken[-1]
        return output

    summary = run(tmp_path, counted, logging_steps=4).summary
    assert [line["trivial_loss"] for line in lines(tmp_path)] == [5.0, 13.0, 19.0]
    assert (summary.loss, summary.trivial_loss) == (8.5, 17.0)  # of the last four


def worthless(*given) -> Output:
    output = steps.standard(*given)
    output.loss = torch.tensor(output.trivial_loss)
    return output


def test_bf16_keeps_weights_and_checkpoints_in_fp32(tmp_path):
    done = Processes(job, tmp_path, bf16="yes", log=tmp_path / "log.txt").succeed()
    assert re.search(r"1 process on cpu \(\d+ cores?\), bf16", done)
    saved = load_file(tmp_path / "checkpoints/step_00000010/method.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}


def test_resume_in_another_precision_is_said(tmp_path):
    run(tmp_path, save_steps=5)
    resumed = run(tmp_path, bf16="yes", max_steps=11, resume_from_checkpoint="auto")
    assert any("on cpu, bf16 instead of torch" in warning for warning in resumed.summary.warnings)


@pytest.mark.slow
def test_one_process_may_train_twice_in_different_precisions(tmp_path):
    for name, bf16 in (("first", "no"), ("second", "yes"), ("third", "no")):
        run(tmp_path / name, bf16=bf16, max_steps=2)


def test_a_warmup_longer_than_the_run_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(BadInput, match="--warmup_steps 1000 is more than the"):
        run(tmp_path / "run", max_steps=-1, num_train_epochs=1, warmup_steps=1000)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "environment, threads",
    [
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, "all"),  # the default of accelerate launch
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no", "LOCAL_WORLD_SIZE": "9999"}, "1"),
        ({"OMP_NUM_THREADS": "1"}, "1"),
        ({"OMP_NUM_THREADS": "2", "ACCELERATE_MIXED_PRECISION": "no"}, "2"),
    ],
)
def test_a_run_uses_all_cores_unless_told_otherwise(environment, threads):
    program = "import torch; from mmssl.training import start; start._use_all_cores(); print(torch.get_num_threads())"
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=clean | environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == (str(cores()) if threads == "all" else threads)
