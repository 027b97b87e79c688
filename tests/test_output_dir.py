"""Nothing of a user's is deleted, overwritten or published; two runs never write to one directory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import tiny_clip
from accelerate import PartialState
from hub_server import TOKEN, Hub
from huggingface_hub import constants
from processes import Processes
from small import Numbers, Small, adam, arguments
from test_checkpoint import rewritten
from test_export import finish

from mmssl.data.loader import Loader
from mmssl.errors import BadInput
from mmssl.hub import export
from mmssl.training import steps
from mmssl.training.checkpoint import complete_checkpoints
from mmssl.training.loop import train
from mmssl.training.output_dir import OutputDir
from mmssl.training.start import start


def run(output_dir: Path, step=steps.standard, samples: int = 50, evaluate=None, **flags) -> Small:
    args = arguments(output_dir, **({"save_steps": 5, "max_steps": 10} | flags))
    start(args)
    method = Small()
    train(method, Loader(Numbers(samples), 6), args, [adam(method)], step, evaluate)
    return method


def finished(output_dir: Path, **flags) -> Path:
    run(output_dir, **flags)
    with OutputDir(output_dir).writing() as place:
        (place / "metrics.json").write_text("{}")
        (place / "model.safetensors").write_text("weights")
        (place / "README.md").write_text("card")
    return output_dir


def contents(directory: Path) -> dict[str, bytes]:
    found = (file for file in directory.rglob("*") if file.is_file() and ".mmssl" not in file.parts)
    return {str(file.relative_to(directory)): file.read_bytes() for file in found}


def refused(output_dir: Path, said: str, **flags) -> None:
    before = contents(output_dir)
    with pytest.raises(BadInput, match=said):
        run(output_dir, **flags)
    assert contents(output_dir) == before


def test_overwriting_a_run_deletes_what_it_wrote_and_nothing_else(tmp_path):
    directory = finished(tmp_path / "run")
    mine = {"notes.txt": b"mine", "data/train.csv": b"a,b", "checkpoints/keep/weights": b"w", "figures/own.png": b"p"}
    for name, content in mine.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    run(directory, overwrite_output_dir=True, max_steps=2, save_steps=0)
    assert contents(directory).keys() == {"log.jsonl", *mine}
    assert mine.items() <= contents(directory).items()


def failing(*given):
    raise BadInput("this run cannot begin")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"samples": 5}, "fewer than one global batch"),
        ({"step": failing}, "this run cannot begin"),
        ({"evaluate": failing}, "this run cannot begin"),
        ({"max_steps": -1, "gradient_accumulation_steps": 99}, "--gradient_accumulation_steps"),
        ({"resume_from_checkpoint": "nowhere"}, "no readable SHA256SUMS"),
    ],
)
def test_a_run_that_cannot_begin_deletes_nothing(tmp_path, flags, said):
    refused(finished(tmp_path / "run"), said, overwrite_output_dir=True, **flags)


@pytest.mark.parametrize("name", ["README.md", "log.jsonl", "config.json", "model.safetensors", "figures/loss.png"])
@pytest.mark.parametrize("flags", [{}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "auto"}])
def test_a_file_of_the_users_where_a_run_would_write_is_named_and_stays(tmp_path, name, flags):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    refused(tmp_path, f"{name} would be overwritten, and no run of this directory wrote it", **flags)


@pytest.mark.parametrize("name", ["README.md", "config.json", "log.jsonl", "metrics.json"])
def test_a_folder_where_a_file_is_due_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=f"{name}|finished"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["figures", "checkpoints", "pretraining", "logs", ".mmssl"])
def test_a_file_where_a_folder_is_due_is_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(BadInput, match=f"{name} would be overwritten|{name}/"):
        run(tmp_path)


def test_a_file_in_the_way_of_the_export_stays_and_what_was_trained_is_kept_beside_it(tmp_path):
    run(tmp_path)
    (tmp_path / "own.py").write_text("mine")
    with (
        pytest.raises(BadInput, match="own.py would be overwritten.*--resume_from_checkpoint auto.*partial"),
        OutputDir(tmp_path).writing() as place,
    ):
        (place / "own.py").write_text("ours")
    assert (tmp_path / "own.py").read_text() == "mine" and (place / "own.py").read_text() == "ours"


def test_data_and_model_of_a_run_are_not_deleted_by_it(tmp_path):
    directory = finished(tmp_path / "run")
    for place in (directory, directory / "model.safetensors", directory / "checkpoints"):
        refused(directory, "lies in the run that", overwrite_output_dir=True, probe_dataset=str(place))


def test_the_parent_of_all_runs_is_no_run(tmp_path, monkeypatch):
    finished(tmp_path / "a")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    run(Path("."), overwrite_output_dir=True, save_steps=0)
    assert before.items() <= contents(tmp_path).items()


def test_a_link_to_a_run_overwrites_the_run_that_it_leads_to(tmp_path):
    finished(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    run(tmp_path / "link", overwrite_output_dir=True, max_steps=2, save_steps=2)
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "run" / "metrics.json").exists()
    assert [path.name for path in complete_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000002"]


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_that_leads_nowhere_is_said(tmp_path, target):
    (tmp_path / "link").symlink_to(target)
    for place in ("link", "link/run"):
        with pytest.raises(BadInput, match="link is a broken link"):
            run(tmp_path / place)


def test_a_finished_run_without_its_checkpoints_is_not_trained_again_by_resuming(tmp_path):
    refused(finished(tmp_path, save_steps=0), "already holds a finished run", resume_from_checkpoint="auto")


def test_a_directory_named_from_where_the_user_stands_resumes_and_keeps_the_newest_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Path("runs/mae"), save_steps=2, save_total_limit=2)
    saved = [path.name for path in complete_checkpoints(Path("runs/mae/checkpoints"))]
    assert saved == ["step_00000008", "step_00000010"]
    assert all(name.startswith(("checkpoints/", "log")) for name in OutputDir("runs/mae").files())
    run(Path("runs/mae"), save_steps=2, save_total_limit=2, max_steps=14, resume_from_checkpoint="auto")
    saved = [path.name for path in complete_checkpoints(Path("runs/mae/checkpoints"))]
    assert saved == ["step_00000012", "step_00000014"]


def test_another_run_is_not_overwritten_by_resuming_into_its_directory(tmp_path):
    run(tmp_path / "a")
    checkpoint = str(tmp_path / "a/checkpoints/step_00000005")
    refused(finished(tmp_path / "b"), "already holds a finished run", resume_from_checkpoint=checkpoint)
    run(tmp_path / "b", resume_from_checkpoint=checkpoint, overwrite_output_dir=True)
    assert not (tmp_path / "b" / "metrics.json").exists()


def test_an_unfinished_run_is_not_written_over_but_is_resumed(tmp_path):
    run(tmp_path, max_steps=5)
    refused(tmp_path, "Continue it with --resume_from_checkpoint auto")
    run(tmp_path, resume_from_checkpoint="auto", overwrite_output_dir=True)
    assert len(complete_checkpoints(tmp_path / "checkpoints")) == 2


def test_a_run_that_the_user_has_deleted_by_hand_is_not_in_the_way(tmp_path):
    run(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "log.jsonl").unlink()
    run(tmp_path)


def test_a_run_of_an_earlier_version_is_resumed_and_never_overwritten(tmp_path):
    run(tmp_path, max_steps=5)
    (tmp_path / ".mmssl" / "manifest.json").unlink()
    refused(tmp_path, "holds a run without a list of its files", overwrite_output_dir=True)
    run(tmp_path, resume_from_checkpoint="auto", save_total_limit=1)
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == ["step_00000010"]


def test_a_manifest_that_names_files_elsewhere_deletes_none_of_them(tmp_path):
    (tmp_path / "mine").write_text("mine")
    directory = finished(tmp_path / "run")
    manifest = directory / ".mmssl" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"] += ["../mine", str(tmp_path / "mine")]
    manifest.write_text(json.dumps(content))
    run(directory, overwrite_output_dir=True)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_damaged_manifest_is_said(tmp_path):
    finished(tmp_path)
    (tmp_path / ".mmssl" / "manifest.json").write_text("[")
    refused(
        tmp_path, "manifest.json, the list of the files that the run wrote, cannot be read", overwrite_output_dir=True
    )


def test_what_a_user_puts_among_checkpoints_stays(tmp_path):
    run(tmp_path, save_total_limit=1, max_steps=5)
    (tmp_path / "checkpoints/step_00000005/notes.txt").write_text("mine")
    (tmp_path / "checkpoints/.ipynb_checkpoints").mkdir()
    (tmp_path / "checkpoints/partial_00000007").mkdir()
    (tmp_path / "checkpoints/partial_00000007/mine").write_text("mine")
    run(tmp_path, save_total_limit=1, resume_from_checkpoint="auto")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("step_00000005/*")} == {
        "checkpoints/step_00000005/notes.txt"
    }
    assert (tmp_path / "checkpoints/partial_00000007/mine").exists()


def slow_job(output_dir: Path, **flags) -> None:
    def slow(*given):
        time.sleep(0.05)
        return steps.standard(*given)

    run(output_dir, slow, **flags)


def started(output_dir: Path, log: Path) -> Processes:
    process = Processes(slow_job, output_dir, max_steps=10_000, logging_steps=1, save_steps=2, log=log)
    while process.alive and not list(output_dir.glob("checkpoints/step_*")):
        time.sleep(0.02)
    return process


def test_a_second_run_in_one_directory_is_refused_with_the_process_of_the_first_and_a_dead_one_is_not_in_the_way(
    tmp_path,
):
    first = started(tmp_path / "run", tmp_path / "first.txt")
    try:
        for flags in ({}, {"resume_from_checkpoint": "auto"}, {"overwrite_output_dir": True}):
            by = f"is being written to by process {first.all[0].pid} on {os.uname().nodename}"
            with pytest.raises(BadInput, match=by):
                run(tmp_path / "run", **flags)
    finally:
        first.kill()
    run(tmp_path / "run", resume_from_checkpoint="auto", max_steps=1)


def register_many(output_dir: Path, name: str) -> None:
    for i in range(50):
        OutputDir(output_dir).register([f"{name}_{i}.png"])


def test_processes_that_register_at_once_lose_no_name(tmp_path):
    both = [Processes(register_many, tmp_path, name, log=tmp_path / f"{name}.txt") for name in ("one", "other")]
    assert [process.wait() for process in both] == [[0], [0]]
    assert OutputDir(tmp_path).files() == {f"{name}_{i}.png" for name in ("one", "other") for i in range(50)}


def test_a_file_of_another_process_does_not_make_it_the_run(tmp_path):
    run(tmp_path, max_steps=1)
    manifest = tmp_path / ".mmssl" / "manifest.json"
    evaluator = Processes(register_many, tmp_path, "figure", log=tmp_path / "log.txt")
    assert evaluator.wait() == [0]
    content = json.loads(manifest.read_text())
    assert content["process"] == os.getpid() and "figure_0.png" in content["files"]
    manifest.write_text(json.dumps(content | {"process": 1}))
    run(tmp_path, max_steps=2, resume_from_checkpoint="auto", overwrite_output_dir=True)
    assert json.loads(manifest.read_text())["process"] == os.getpid()


def test_of_two_runs_started_together_one_trains(tmp_path):
    both = [Processes(slow_job, tmp_path / "run", max_steps=60, log=tmp_path / f"{i}.txt") for i in range(2)]
    codes = sorted(process.wait()[0] for process in both)
    assert codes == [0, 1]
    said = "".join(process.output for process in both)
    assert f"is being written to by process {next(p.all[0].pid for p in both if p.wait() == [0])} on" in said
    logged = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged == sorted(set(logged))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_and_slurms_warning_save_as_sigterm_does(tmp_path, number):
    process = started(tmp_path / "run", tmp_path / "log.txt")
    process.send(number)
    assert process.wait() == [128 + number]
    assert f"{number.name}: saved at step" in process.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_export_says_how_to_continue_and_leaves_no_half(tmp_path, capsys, number):
    PartialState(cpu=True)
    method, processor = tiny_clip.build()

    class Interrupted(type(method)):
        def save_pretrained(self, directory):
            super().save_pretrained(directory)
            os.kill(os.getpid(), number)

    method.__class__ = Interrupted
    with pytest.raises(SystemExit) as left:
        finish(tmp_path / "run", method, processor)
    assert left.value.code == 128 + number
    said = capsys.readouterr().err
    assert f"{number.name}: the export to" in said and "--resume_from_checkpoint auto export it again" in said
    assert contents(tmp_path / "run").keys() == {"log.jsonl"} and not list(tmp_path.rglob("partial"))


@pytest.fixture
def hub(monkeypatch):
    PartialState(cpu=True)
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_only_what_the_run_wrote_is_uploaded_and_the_rest_is_named(hub, tmp_path, capsys):
    finish(tmp_path / "run", *tiny_clip.build())
    (tmp_path / "secret").write_text("of another place")
    secrets = {"data/.env": "KEY", "secrets/id_rsa": "KEY", "notes.md": "mine"}
    for name, content in secrets.items():
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text(content)
    (tmp_path / "run" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "run" / "figures" / "loss.png").unlink()
    (tmp_path / "run" / "figures" / "loss.png").symlink_to(tmp_path / "secret")
    export.push(tmp_path / "run", "user/name")
    files = hub.repositories["models/user/name"].files
    assert files.keys() == {
        "README.md", "config.json", "metrics.json", "model.safetensors", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "not uploaded, because the run did not write it: data/.env, figures/loss.png, link" in said


def test_a_directory_that_no_run_wrote_is_not_uploaded(hub, tmp_path):
    for name in ("README.md", "metrics.json", "model.safetensors"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(BadInput, match=r"metrics.json is not in the list of the run's files"):
        export.push(tmp_path, "user/name")


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert arguments("~/x").output_dir == str(tmp_path / "x")
    run("~/x", max_steps=1)
    assert (tmp_path / "x" / "log.jsonl").exists() and not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seen_twice", 1, "a later version of mmssl wrote it: it has the unknown field seen_twice"),
        ("samples", "many", "samples is 'many', expected int"),
    ],
)
def test_a_checkpoint_of_another_version_is_said_and_the_one_before_it_taken(tmp_path, capsys, field, value, said):
    run(tmp_path)
    newest = tmp_path / "checkpoints" / "step_00000010"
    rewritten(newest, lambda state: state["progress"]["summary"].update({field: value}))
    run(tmp_path, resume_from_checkpoint="auto")
    told = capsys.readouterr().err
    assert said in told and "step_00000005" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "many"), ("RANK", "-1"), ("MASTER_PORT", "99999"), ("MASTER_ADDR", "no such host")],
)
def test_nonsense_of_a_launcher_is_said(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=f"{name} is '{value}'.*accelerate launch"):
        start(arguments(tmp_path))


def test_a_full_disk_at_the_export_is_said_and_what_was_there_stays_whole(tmp_path):
    directory = tmp_path / "run"
    finish(directory, *tiny_clip.build())
    before = contents(directory)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(BadInput, match=r"could not be written .* it needs .* MB, and .* MB are free"):
            finish(directory, *tiny_clip.build(seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(directory) == {name: content for name, content in before.items() if name != "metrics.json"}
    assert not list(directory.rglob("partial"))


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "log.jsonl"])
def test_a_named_pipe_in_place_of_a_file_of_the_run_does_not_hang(tmp_path, name):
    run(tmp_path)
    for file in [path for path in tmp_path.rglob(name) if path.is_file()]:
        file.unlink()
        os.mkfifo(file)
    signal.alarm(60)
    try:
        if name == "log.jsonl":
            run(tmp_path, resume_from_checkpoint="auto")
            assert (tmp_path / name).is_file()
        else:
            with pytest.raises(BadInput, match="not a regular file|every checkpoint in .* is damaged"):
                run(tmp_path, resume_from_checkpoint="auto")
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("place", ["", "runs/one"])
def test_a_run_inside_of_its_data_is_refused_before_it_leaves_anything_there(tmp_path, place):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(BadInput, match=f"lies in --dataset {tmp_path}, and the next run would read its files as data"):
        run(tmp_path / place, dataset=str(tmp_path))
    assert contents(tmp_path) == {"photo.png": b"mine"}
