"""Recordings as Parquet: what a name says, which part a recording goes to, what is written, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Value

from mmssl.data import sources
from mmssl.data.audio import parquet
from mmssl.errors import BadInput

CARD = "# {contents}\n"


def flac(samples: int = 800, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(samples) / 5), rate, format="FLAC")
    return buffer.getvalue()


def wav() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(800) / 5), 8000, format="WAV")
    return buffer.getvalue()


def row(path: str, content: bytes | None = None) -> dict:
    return {"audio": {"bytes": flac() if content is None else content, "path": path}}


@pytest.mark.parametrize(
    ("pattern", "path", "said"),
    [
        ("{digit:d}_{speaker}_{take:d}", "x/0_mary_ann_12.wav", {"digit": 0, "speaker": "mary_ann", "take": 12}),
        ("{label}/{name}", "/a/b/wren/0001.wav", {"label": "wren", "name": "0001"}),
        ("{speaker}-{chapter}-{utterance}", "84-121123-0003.flac", {"speaker": "84", "chapter": "121123",
                                                                     "utterance": "0003"}),
        ("rec(1).{site}", "rec(1).moor.wav", {"site": "moor"}),
    ],
)  # fmt: skip
def test_a_path_says_what_its_pattern_names(pattern, path, said):
    assert parquet.fields(pattern, path) == said
    assert set(parquet.columns(pattern)) == set(said)


@pytest.mark.parametrize("path", ["x_mary_1.wav", "1_mary.wav", "", "1_mary_1_b.wav"])
def test_a_path_that_does_not_fit_is_named(path):
    with pytest.raises(BadInput, match="does not match the pattern {digit:d}"):
        parquet.fields("{digit:d}_{speaker}_{take:d}", path)


def test_what_is_held_out_goes_to_the_test_part_and_nothing_else_does():
    data = {
        "train": [row(f"{i}_{who}.wav") for i in range(4) for who in ("ann", "bob", "cy")],
        "test": [row("9_dee.wav")],
    }
    parts = parquet.described(data, "{take:d}_{who}", "who=bob,dee")
    train, test = ([r["who"] for r in parts[name]] for name in ("train", "test"))
    assert train == ["ann", "cy"] * 4 and test == ["bob"] * 4 + ["dee"]
    kept = parquet.described(data, "{take:d}_{who}")
    assert [len(list(kept[name])) for name in ("train", "test")] == [12, 1]
    for wrong in ("who", "speaker=ann"):
        with pytest.raises(BadInput, match=f"--hold_out {wrong}: give a column of take, who"):
            parquet.described(data, "{take:d}_{who}", wrong)


def test_it_is_written_whole_in_shards_that_both_libraries_read(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "SHARD", 3 * len(flac()))
    rows = [row(f"folder/{i}.flac") | {"who": "ann"} for i in range(7)]
    said = parquet.write(tmp_path / "out", {"train": rows, "test": rows[:1]}, {"who": Value("string")}, CARD)
    files = ["README.md", "test-00000.parquet", *(f"train-0000{i}.parquet" for i in range(3))]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == files and list(tmp_path.iterdir()) == [
        tmp_path / "out"
    ]
    train, test = (f"{n} recordings, 0.0 minutes at 8,000 Hz" for n in (7, 1))
    assert said == f"{tmp_path}/out: train: {train}; test: {test}"
    assert (tmp_path / "out" / "README.md").read_text() == f"# {said.partition(': ')[2]}\n"
    for data in (sources.load(str(tmp_path / "out")), datasets.load_dataset(str(tmp_path / "out"))):
        assert [len(data[part]) for part in ("train", "test")] == [7, 1]
        first = data["train"][0]
        assert first["audio"] == {"bytes": flac(), "path": "0.flac"} and first["sampling_rate"] == 8000


def test_a_file_s_path_is_enough_and_its_bytes_stay_as_they_are(tmp_path):
    (tmp_path / "a.flac").write_bytes(flac(rate=16000))
    parquet.write(tmp_path / "out", {"train": [{"audio": {"path": str(tmp_path / "a.flac")}}]}, {}, CARD)
    (stored,) = sources.load(str(tmp_path / "out"))["train"]
    assert stored["audio"]["bytes"] == flac(rate=16000) and stored["sampling_rate"] == 16000


def test_only_the_first_hours_are_taken(tmp_path):
    def rows():
        for i in range(1000):
            assert i < 4, "read further than was asked for"
            yield row(f"{i}.flac", flac(8000))

    said = parquet.write(tmp_path / "out", {"train": rows()}, {}, CARD, hours={"train": 3.5 / 3600})
    assert "train: 4 recordings" in said


def test_what_cannot_be_read_is_named_and_left_out_and_too_much_of_it_refused(tmp_path):
    bad = [row("noise.wav", b"noise"), {"audio": None}, row("none.wav", b""), {"audio": {"path": "/nowhere.wav"}}]
    said = parquet.write(tmp_path / "out", {"train": [row(f"{i}") for i in range(36)] + bad}, {}, CARD)
    assert "36 recordings" in said and "left out 4 recordings that cannot be read (noise.wav LibsndfileError: " in said
    with pytest.raises(BadInput, match=r"of 9 rows, 4 recordings that cannot be read \(noise\.wav .*; \.\.\.\)"):
        parquet.write(tmp_path / "bad", {"train": [row(f"{i}") for i in range(5)] + bad}, {}, CARD)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_named_pipe_and_an_impossible_rate_are_left_out(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    slow = bytearray(wav())
    slow[24:28] = (1).to_bytes(4, "little")
    bad = [{"audio": {"path": str(tmp_path / "pipe.wav")}}, row("slow.wav", bytes(slow))]
    said = parquet.write(tmp_path / "out", {"train": [row(f"{i}") for i in range(18)] + bad}, {}, CARD)
    assert "pipe.wav is a named pipe, not a regular file; slow.wav says 1 Hz" in said


def test_nothing_is_written_over_and_an_empty_part_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(BadInput, match="already exists and is not empty: remove it, or choose another folder"):
            parquet.write(place, {"train": [row("a.wav")]}, {}, CARD)
    with pytest.raises(BadInput, match="there is no recording for the test part"):
        parquet.write(tmp_path / "out", {"train": [row("a.wav")], "test": []}, {}, CARD)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["mine.txt"]
