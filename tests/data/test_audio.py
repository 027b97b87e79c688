"""Recordings: what is read from which files, how they are cut, and what is left out, by name."""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import time
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from mmssl.data.audio import waves
from mmssl.data.audio.recordings import Recordings, load
from mmssl.data.loader import Loader
from mmssl.errors import BadInput

SIZE = {"sampling_rate": 8000, "crop": 800, "shortest": 400}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def tone(hertz: float, samples: int = 4000, rate: int = 8000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.float32)


def pitch(wave, rate: int = 8000) -> float:
    """The loudest frequency, in Hz."""
    return np.abs(np.fft.rfft(np.asarray(wave))).argmax() * rate / len(wave)


def encoded(wave: np.ndarray, rate: int = 8000, format: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=format)
    return buffer.getvalue()


def folder(place: Path, n: int = 12, **options) -> str:
    place.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        soundfile.write(place / f"{i:02}.wav", tone(200 + 20 * i, **options), options.get("rate", 8000))
    return str(place)


def parquet(file: Path, n: int = 12, **columns) -> str:
    rows = [{"bytes": encoded(tone(200 + 20 * i)), "path": f"{i}.flac"} for i in range(n)]
    datasets.Dataset.from_dict({"audio": rows} | columns).to_parquet(file)
    return str(file)


def recordings(name: str, **changes) -> Recordings:
    return Recordings(load(name)["train"], **(SIZE | changes))


@pytest.mark.parametrize(
    ("suffix", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", None)]
)
def test_a_folder_of_any_usual_format_is_read(tmp_path, suffix, subtype):
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.{suffix}", tone(200 + 50 * i), 8000, subtype=subtype)
    data = recordings(str(tmp_path))
    assert [round(pitch(data.wave(i)), -1) for i in range(10)] == [200 + 50 * i for i in range(10)]
    assert np.abs(data.wave(0)).max() == pytest.approx(0.5, abs=0.05)


def test_the_folder_that_a_recording_lies_in_is_its_label_and_test_folders_are_held_out(tmp_path):
    for part in ("train/cat", "train/dog", "test/cat"):
        folder(tmp_path / part, n=3)
    data = load(str(tmp_path))
    assert sorted(data["train"]["label"]) == ["cat"] * 3 + ["dog"] * 3 and data["test"]["label"] == ["cat"] * 3


def test_bytes_paths_and_audio_columns_give_the_same_samples(tmp_path):
    name = parquet(tmp_path / "bytes.parquet")
    typed = datasets.Features({"audio": datasets.Audio()})  # as the Hub's data sets are
    table = pq.read_table(name).replace_schema_metadata(
        {b"huggingface": json.dumps({"info": {"features": typed.to_dict()}})}
    )
    pq.write_table(table, tmp_path / "typed.parquet")
    paths = sorted(Path(folder(tmp_path / "folder")).iterdir())
    datasets.Dataset.from_dict({"file": list(map(str, paths))}).to_parquet(tmp_path / "paths.parquet")
    names = (name, tmp_path / "typed.parquet", tmp_path / "folder", tmp_path / "paths.parquet")
    first, *others = (recordings(str(n)) for n in names)
    for other in others:
        assert all(np.allclose(first.wave(i), other.wave(i), atol=1e-4) for i in range(12))


def test_another_rate_is_resampled_and_nothing_above_half_the_new_one_comes_back_as_something_else(tmp_path):
    for i, hertz in enumerate([500] * 10 + [6000]):
        soundfile.write(tmp_path / f"{i:02}.wav", tone(hertz, 16000, 16000) + tone(300, 16000, 16000), 16000)
    data = recordings(str(tmp_path))
    assert data.lengths.tolist() == [8000] * 11 and data.seconds == 11.0
    high = np.abs(np.fft.rfft(data.wave(10)))  # 6 kHz would be mirrored to 2 kHz
    assert pitch(data.wave(10)) == 300 and high[1990:2010].max() < 0.01 * high.max()


def test_channels_are_averaged(tmp_path):
    folder(tmp_path, n=10)
    soundfile.write(tmp_path / "00.wav", np.stack([tone(300), np.zeros(4000)], 1), 8000)
    assert np.allclose(recordings(str(tmp_path)).wave(0), tone(300) / 2, atol=1e-3)


def test_random_crops_repeat_by_seed_and_epoch_and_are_stretches_of_their_recording(tmp_path):
    name = folder(tmp_path / "folder")

    def crops(seed: int, epoch: int) -> torch.Tensor:
        data = recordings(name, seed=seed)
        data.set_epoch(epoch)
        batch = data.__getitems__(list(range(len(data))))
        for crop, row in zip(batch["input_values"].numpy(), batch["index"].tolist(), strict=True):
            where = np.lib.stride_tricks.sliding_window_view(data.wave(row), 800)
            assert (where == crop).all(1).any()
        return batch["input_values"]

    assert len(crops(0, 0)) == 12 * 5  # half a second, a tenth at a time
    assert torch.equal(crops(0, 0), crops(0, 0))
    assert not torch.equal(crops(0, 0), crops(0, 1)) and not torch.equal(crops(0, 0), crops(1, 0))


def test_without_a_seed_the_beginning_is_taken_once(tmp_path):
    data = recordings(folder(tmp_path / "folder"))
    batch = data.__getitems__(list(range(12)))
    assert len(data) == 12 and all(np.array_equal(batch["input_values"][i], data.wave(i)[:800]) for i in range(12))


def test_a_short_recording_is_padded_with_zeros_that_its_length_leaves_out(tmp_path):
    data = recordings(folder(tmp_path / "folder", samples=500), seed=0)
    batch = data.__getitems__([0, 1])
    assert batch["lengths"].tolist() == [500, 500] and batch["input_values"].shape == (2, 800)
    assert (batch["input_values"][:, 500:] == 0).all() and batch["input_values"][:, :500].abs().max() > 0.4


def test_workers_give_the_batches_that_one_process_gives(tmp_path):
    data = recordings(folder(tmp_path / "folder"), seed=0)
    alone, workers = (list(Loader(data, 8, num_workers=n).epoch(3)) for n in (0, 2))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, workers, strict=True) for name in a)


def unusable(place: Path) -> str:
    """Sixty good ones, and six that are not, in the order of their names."""
    folder(place, n=60)
    (place / "a broken.wav").write_bytes(b"RIFF and no more")
    (place / "b empty.flac").write_bytes(b"")
    soundfile.write(place / "c without samples.wav", np.zeros(0), 8000)
    soundfile.write(place / "d short.wav", tone(300, 399), 8000)
    soundfile.write(place / "e silent.wav", np.full(4000, 1e-5), 8000, subtype="FLOAT")
    not_a_number = tone(300)
    not_a_number[7] = np.nan
    soundfile.write(place / "f nan.wav", not_a_number, 8000, subtype="FLOAT")
    return str(place)


def test_channels_that_cancel_are_not_called_a_silent_recording(tmp_path):
    source = folder(tmp_path / "folder", n=20)
    soundfile.write(tmp_path / "folder" / "x.wav", np.stack([tone(300), -tone(300)], 1), 8000)
    (why,) = recordings(source).unusable.values()
    assert why.endswith(
        "x.wav is silent after its channels were mixed: they cancel each other; store one of them alone"
    )


def test_what_cannot_be_used_is_named_and_counted_and_left_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = recordings(unusable(tmp_path / "folder"))
    assert len(data) == 60 and sorted(data.rows.tolist()) == list(range(60))
    said = list(data.unusable.values())
    for word, why in zip(("broken", "empty", "without samples", "short", "silent", "nan"), said, strict=True):
        assert f"{word}.wav" in why or f"{word}.flac" in why, why
    assert said[2].endswith("holds no samples") and said[3].endswith("is shorter than 0.05 s")
    assert said[4].endswith("is silent") and said[5].endswith("holds samples that are not finite")
    assert "left out of 66 rows: 6 recordings that cannot be used (row 60: " in caplog.text and "; ...)" in caplog.text


def test_too_many_that_cannot_be_used_are_refused(tmp_path):
    name = folder(tmp_path / "folder", n=8)
    for broken in ("y.wav", "z.wav"):
        (tmp_path / "folder" / broken).write_bytes(b"noise")
    with pytest.raises(BadInput, match=r"of 10 rows, 2 recordings that cannot be used \(row 8: .*y\.wav.*\): too many"):
        recordings(name)
    with pytest.raises(BadInput, match=r"10 recordings that cannot be used \(row 0: .*is shorter than 1\.00 s"):
        recordings(name, shortest=8000)


def test_empty_bytes_and_rows_without_a_recording_are_no_files_that_are_missing(tmp_path):
    rows = [{"bytes": encoded(tone(200)), "path": f"{i}.flac"} for i in range(30)]
    rows[3] = {"bytes": b"", "path": "3.flac"}
    rows[5] = None
    datasets.Dataset.from_dict({"audio": rows}).to_parquet(tmp_path / "a.parquet")
    data = recordings(str(tmp_path / "a.parquet"))
    assert data.unusable == {3: "3.flac holds no recording", 5: "holds no recording"}
    assert data.__getitems__([4])["index"].tolist() == [6]


def test_a_second_run_decodes_nothing_and_a_file_that_changed_is_decoded_again(tmp_path, monkeypatch):
    name, read, calls = folder(tmp_path / "folder"), waves.read, []
    monkeypatch.setattr(waves, "read", lambda *given: calls.append(1) or read(*given))
    recordings(name)
    again = recordings(name)
    assert len(calls) == 1 and round(pitch(again.wave(0))) == 200
    soundfile.write(tmp_path / "folder" / "00.wav", tone(1000), 8000)
    changed = recordings(name)
    assert len(calls) == 2 and round(pitch(changed.wave(0))) == 1000
    recordings(name, sampling_rate=4000)
    assert len(calls) == 3


def test_several_data_sets_stand_between_commas_and_the_first_gives_the_test_data(tmp_path):
    folder(tmp_path / "first" / "train")
    folder(tmp_path / "first" / "test", n=3)
    table = parquet(tmp_path / "more.parquet", n=5, label=[1] * 5)
    for name, test in ((f"{tmp_path}/first,{table}", 3), (f"{table},{tmp_path}/first", None)):
        data = load(name)
        assert len(data["train"]) == 17 and (len(data["test"]) if test else data.get("test")) == test
        assert len(Recordings(data["train"], **SIZE)) == 17


def test_speakers_are_numbered_by_name_in_every_data_set(tmp_path):
    named = parquet(tmp_path / "named.parquet", who=["ann", "bob"] * 6)
    numbered = parquet(tmp_path / "numbered.parquet", n=4, who=[7, 7, 8, 8])
    rows = load(f"{named},{numbered}", speaker="who")["train"]
    data = Recordings(rows, **SIZE, seed=0, speakers=True)
    speaker = {row: number for row, number in zip(data.rows.tolist(), data.speaker.tolist(), strict=True)}
    assert [speaker[i] for i in range(16)] == [2, 3] * 6 + [0, 0, 1, 1]
    assert data.company(17) == pytest.approx(16 * (2 * (6 / 16) ** 2 + 2 * (2 / 16) ** 2))
    batch = data.__getitems__(list(range(len(data))))
    assert batch["speaker"].tolist() == [speaker[row] for row in batch["index"].tolist()]


def test_a_column_that_is_not_there_is_named(tmp_path):
    table = parquet(tmp_path / "a.parquet", who=["ann"] * 12)
    with pytest.raises(BadInput, match="--audio_column wave: the data has no such column, only audio, who"):
        load(table, column="wave")
    with pytest.raises(BadInput, match="--speaker_column speaker: the data has no such column, only audio, who"):
        load(table, speaker="speaker")
    with pytest.raises(BadInput, match=r"b\.parquet: --speaker_column who: the data has no such column, only audio"):
        load(f"{table},{parquet(tmp_path / 'b.parquet')}", speaker="who")
    datasets.Dataset.from_dict({"noise": ["a"], "audio": [1]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(BadInput, match=r"the column audio is Value\('int64'\), not recordings or paths"):
        load(str(tmp_path / "c.parquet"))
    datasets.Dataset.from_dict({"noise": ["a"]}).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(BadInput, match="no audio column among noise: name it with --audio_column"):
        load(str(tmp_path / "d.parquet"))


def test_the_column_that_is_asked_for_is_the_one_that_is_read(tmp_path):
    other = [{"bytes": encoded(tone(1000)), "path": f"{i}.flac"} for i in range(12)]
    table = parquet(tmp_path / "a.parquet", clean=other)
    data = Recordings(load(table, column="clean")["train"], **SIZE)
    assert all(round(pitch(data.wave(i))) == 1000 for i in range(12))


# ---------------------------------------------------------------- limits


def wav(rate: int, samples: int, channels: int = 1) -> bytes:
    """The header of a 16-bit WAV file that says so."""
    size, frame = 2 * samples * channels, 2 * channels
    length, speed = min(36 + size, 2**32 - 1), min(rate * frame, 2**32 - 1)
    fields = b"RIFF", length, b"WAVE", b"fmt ", 16, 1, channels, rate, speed, frame, 16, b"data", size
    return struct.pack("<4sI4s4sIHHIIHH4sI", *fields)


def one(stored: dict, rate: int = 16_000, seconds: float = float("inf")) -> np.ndarray | str:
    data = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": None} | stored]})
    return next(waves.read(data, "audio", rate, seconds))


@pytest.mark.parametrize("rate", [1, 999, 1_000_000_000])
def test_a_rate_that_no_recording_has_is_refused_before_it_is_resampled(rate):
    noise = np.random.default_rng(0).integers(-9999, 9999, 20_000, np.int16).tobytes()
    assert one({"bytes": wav(rate, 20_000) + noise}) == f"says {rate:,} Hz, which is not between 1,000 and 768,000"


def test_an_odd_rate_is_resampled_quickly_and_keeps_its_pitch():
    start = time.monotonic()
    wave = one({"bytes": encoded(tone(440, 400_000, 599_999), 599_999, "WAV")}, 8_000)
    assert time.monotonic() - start < 5 and abs(len(wave) - 400_000 * 8_000 / 599_999) < 2
    assert pitch(wave) == pytest.approx(440, abs=2)


def test_a_recording_of_many_hours_is_refused_and_its_beginning_can_still_be_read(tmp_path):
    with open(tmp_path / "long.wav", "wb") as file:  # 2 GB of silence that take no space
        file.write(wav(16_000, 1 << 30))
        file.truncate(44 + (1 << 31))
    path = str(tmp_path / "long.wav")
    assert one({"path": path}) == f"{path} is longer than 280 minutes; cut it into several"
    assert len(one({"path": path}, seconds=2)) == 32_000


def test_a_thousand_channels_take_no_more_memory_than_one(tmp_path):
    with open(tmp_path / "wide.wav", "wb") as file:  # as float32, all at once, 82 MB
        file.write(wav(16_000, 20_000, 1024))
        file.truncate(44 + 2 * 1024 * 20_000)
    tracemalloc.start()
    assert len(one({"path": str(tmp_path / "wide.wav")})) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_path_that_leads_to_no_regular_file_is_left_out_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert one({"path": str(tmp_path / "pipe.wav")}).endswith("pipe.wav is a named pipe, not a regular file")
    assert one({"path": "/dev/zero"}) == "/dev/zero is a device, not a regular file"
    assert one({"path": str(tmp_path)}) == f"{tmp_path} is a folder, not a regular file"
