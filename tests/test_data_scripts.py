"""The scripts that build data sets of recordings, as their users run them."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from accelerate import PartialState
from hub_server import TOKEN, Hub
from huggingface_hub import HfApi

from mmssl.data import columns, sources
from mmssl.data.audio import recordings
from mmssl.data.built_in import voices

SCRIPTS = Path(__file__).parent.parent / "data_scripts"


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs one; what it says."""

    def run(name: str, *flags, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
        try:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        except SystemExit as left:
            assert left.code == status, capsys.readouterr()
        said = capsys.readouterr()
        return said.err if status else said.out

    PartialState(cpu=True)
    return run


def write(file: Path, rate: int = 8000, seconds: float = 0.25) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.sin(np.arange(int(seconds * rate)) / 5), rate)


def digits(folder: Path) -> Path:
    for digit in range(10):
        for speaker in ("jackson", "theo"):
            for take in range(7):
                write(folder / f"{digit}_{speaker}_{take}.wav")
    return folder


def test_spoken_digits_are_split_by_take_as_the_set_itself_is(script, tmp_path):
    said = script("spoken_digits", "--source", digits(tmp_path / "recordings"), "--output_dir", tmp_path / "out")
    assert "train: 40 recordings" in said and "test: 100 recordings" in said and "CC BY-SA 4.0" in said
    data = sources.load(str(tmp_path / "out"))
    assert set(data["test"]["take"]) == {0, 1, 2, 3, 4} and set(data["train"]["take"]) == {5, 6}
    assert set(data["train"]["digit"]) == set(range(10)) and set(data["train"]["speaker"]) == {"jackson", "theo"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card and "train: 40 recordings, 0.2 minutes at 8,000 Hz" in card


def test_spoken_digits_hold_out_speakers_and_their_labels_are_found(script, tmp_path):
    out = tmp_path / "out"
    script("spoken_digits", "--source", digits(tmp_path / "wavs"), "--output_dir", out, "--hold_out", "speaker=theo")
    data = recordings.load(str(out), speaker="speaker")
    assert set(data["test"]["speaker"]) == {"theo"} and set(data["train"]["speaker"]) == {"jackson"}
    assert columns.find(data["train"].column_names, None, columns.LABEL, "label") == "digit"


def test_a_folder_of_something_else_is_named_by_its_first_file(script, tmp_path):
    write(tmp_path / "birds" / "wren.wav")
    said = script("spoken_digits", "--source", tmp_path / "birds", "--output_dir", tmp_path / "out", status=2)
    assert (
        "wren.wav does not match the pattern {digit:d}_{speaker}_{take:d}" in said and not (tmp_path / "out").exists()
    )


def test_librispeech_is_read_from_its_archives_and_cut_at_the_hours(script, tmp_path):
    for part, speaker in (("train-clean-100", 19), ("train-clean-100", 26), ("test-clean", 61)):
        for i in range(4):
            write(tmp_path / "LibriSpeech" / part / f"{speaker}/198/{speaker}-198-{i:04}.flac", 16000, 0.5)
        (tmp_path / "LibriSpeech" / part / f"{speaker}/198/{speaker}-198.trans.txt").write_text(
            "19-198-0000 NORTHANGER"
        )
    flags = ["--hours", 2.9 / 3600, "--test_hours", 1, "--output_dir", tmp_path / "out"]
    said = script("librispeech", "--source", tmp_path / "LibriSpeech", *flags)
    assert "train: 6 recordings" in said and "test: 4 recordings" in said and "at 16,000 Hz" in said
    data = sources.load(str(tmp_path / "out"))
    assert data["train"]["speaker"] == ["19"] * 4 + ["26"] * 2 and data["train"]["utterance"][3] == "0003"
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_librispeech_streams_from_the_hub(tmp_path):
    table = {"audio": [], "speaker_id": []}
    for i in range(5):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.sin(np.arange(8000) / 5), 16000, format="FLAC")
        table["audio"].append({"bytes": buffer.getvalue(), "path": f"374-180298-000{i}.flac"})
        table["speaker_id"].append(374)
    for part in ("train.100", "test"):
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / "set" / f"clean.{part}.parquet")
    parts = "".join(f"  - split: {part}\n    path: clean.{part}.parquet\n" for part in ("train.100", "test"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n- config_name: clean\n  data_files:\n{parts}---\n")
    with Hub() as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        api.create_repo("openslr/librispeech_asr", repo_type="dataset")
        api.upload_folder(folder_path=tmp_path / "set", repo_id="openslr/librispeech_asr", repo_type="dataset")
        flags = ["--hours", str(1.1 / 3600), "--output_dir", tmp_path / "out"]
        command = [sys.executable, SCRIPTS / "librispeech.py", *flags]
        env = os.environ | hub.environment(tmp_path / "home")
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "train: 3 recordings" in done.stdout and "test: 5 recordings" in done.stdout
    assert set(sources.load(str(tmp_path / "out"))["train"]["speaker"]) == {"374"}


def test_librispeech_says_what_the_hub_gave(script, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    said = script("librispeech", "--source", "nobody/nothing", "--output_dir", tmp_path / "out", status=2)
    assert "error: --source nobody/nothing: no folder here, and the Hub answered: " in said and said.count("\n") == 1


def test_a_folder_is_labelled_by_its_subfolders_or_by_the_names_of_its_files(script, tmp_path):
    for bird in ("wren", "robin"):
        for site in ("lake", "moor"):
            for take in range(3):
                write(tmp_path / "birds" / bird / f"{site}_{take}.wav")
    said = script("audio_folder", "--source", tmp_path / "birds", "--output_dir", tmp_path / "one")
    assert "train: 12 recordings" in said
    assert sorted(set(sources.load(str(tmp_path / "one"))["train"]["label"])) == ["robin", "wren"]
    assert "license: unknown" in (tmp_path / "one" / "README.md").read_text()
    flags = ["--pattern", "{label}/{site}_{take:d}", "--hold_out", "site=moor", "--licence", "cc-by-4.0"]
    said = script("audio_folder", "--source", tmp_path / "birds", "--output_dir", tmp_path / "two", *flags)
    data = sources.load(str(tmp_path / "two"))
    assert set(data["test"]["site"]) == {"moor"} and set(data["train"]["take"]) == {0, 1, 2}
    card = (tmp_path / "two" / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "`{label}/{site}_{take:d}`" in card and "`label`, `site`, `take`" in card


def test_a_folder_that_is_not_there_and_a_pattern_that_names_nothing_are_refused(script, tmp_path):
    assert "no such folder" in script("audio_folder", "--source", tmp_path / "none", status=2)
    assert "names no column" in script("audio_folder", "--source", tmp_path, "--pattern", "label", status=2)


def test_the_synthetic_voices_are_built_as_the_recipe_builds_them(script, tmp_path, monkeypatch):
    monkeypatch.setattr(voices, "TAKES", 2)
    assert "Synthetic" in script("voices", tmp_path / "voices")
    data = recordings.load(str(tmp_path / "voices"), speaker="speaker")
    assert (len(data["train"]), len(data["test"])) == (80, 20) and set(data["train"]["label"]) == set(voices.VOWELS)
    assert "already exists and is not empty" in script("voices", tmp_path / "voices", status=2)


def test_image_tasks_are_made_of_images_and_their_classes(script, tmp_path):
    import tiny_encoders

    source = tiny_encoders.images(tmp_path / "source", 90)
    said = script("image_tasks", "--dataset", source, "--output_dir", tmp_path / "tasks", "--group", "warm=red")
    assert "turn: 60 train, 30 test images" in said
    tasks = {name: sources.load(str(tmp_path / "tasks" / name)) for name in ("turn", "colour", "contrast", "warm")}
    assert {name: len(set(data["train"]["label"])) for name, data in tasks.items()} == {
        "turn": 4,
        "colour": 4,
        "contrast": 4,
        "warm": 2,
    }
    given = sources.load(source)["test"]
    assert [each == "warm" for each in tasks["warm"]["test"]["label"]] == [each == "red" for each in given["label"]]
    assert np.bincount(np.array(tasks["colour"]["train"]["label"]).astype(int)).tolist() == [15] * 4
    for image, turn, shown in zip(
        given["image"], tasks["turn"]["test"]["label"], tasks["turn"]["test"]["image"], strict=True
    ):
        assert np.array_equal(np.rot90(image, int(turn)), np.asarray(shown))
    refused = script(
        "image_tasks", "--dataset", source, "--output_dir", tmp_path / "none", "--group", "cold=ice", status=2
    )
    assert "--group cold: ice name all classes of the images, or none" in refused
