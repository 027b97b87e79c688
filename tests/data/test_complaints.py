"""Inputs that users of other projects reported as bugs, and what becomes of them here."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_clip
from PIL import Image

from mmssl.data import sources
from mmssl.data.audio import recordings, waves
from mmssl.data.image_text.pairs import Pairs, clean, columns
from mmssl.data.text import documents
from mmssl.errors import BadInput

N = 20


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


@pytest.fixture
def data(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def pixels(i: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (10, 12), (10 * i, 0, 0)).save(content, "PNG")
    return content.getvalue()


def images(folder: Path, n: int = N) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i}.png").write_bytes(pixels(i))


def tar(file: Path, members) -> None:
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_what_macos_and_jupyter_leave_behind_is_no_data(data):
    """pytorch/vision#109, OpenNeuroOrg/openneuro#2520: "cannot identify image file ._1.png"."""
    images(data)
    for i in range(N):
        (data / f"{i}.txt").write_text("a caption")
    shutil.copytree(data, data / "__MACOSX")
    shutil.copytree(data / "__MACOSX", data / ".ipynb_checkpoints")
    for file in list(data.glob("*.*g")) + list(data.glob("*.txt")):
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    (data / ".DS_Store").write_bytes(b"\0")
    rows = sources.load(str(data))["train"]
    assert len(rows) == N and all(captions == ["a caption"] for captions in rows["captions"])


def test_folders_behind_links_are_read_once_even_in_a_circle(data, tmp_path):
    images(tmp_path / "disk" / "cat")
    images(tmp_path / "disk" / "dog")
    for name in ("cat", "dog"):
        (data / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "cat" / "back").symlink_to(data)
    rows = sources.load(str(data))["train"]
    assert len(rows) == 2 * N and rows.features["label"].names == ["cat", "dog"]


def test_a_class_whose_name_begins_like_a_split_is_a_class(data):
    """huggingface/datasets takes the folder "training wheels" for the training split and drops all others."""
    for name in ("training wheels", "testudo", "valley"):
        images(data / name, 7)
    rows = sources.load(str(data))["train"]
    assert len(rows) == 21 and rows.features["label"].names == ["testudo", "training wheels", "valley"]


def test_splits_of_classes_share_their_numbers(data):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            images(data / part / name, 3)
    found = sources.load(str(data))
    assert {part: rows["label"][:] for part, rows in found.items()} == {
        "train": [0, 0, 0, 1, 1, 1], "test": [0, 0, 0, 1, 1, 1],
    }  # fmt: skip


def test_members_of_a_sample_that_lie_apart_are_named(data):
    """webdataset/webdataset#407: "I only get 1 key instead of three"."""
    names = [f"{i}.{suffix}" for suffix in ("png", "txt") for i in range(N)]
    tar(data / "0.tar", [(name, pixels(1) if name.endswith("png") else b"a caption") for name in names])
    with pytest.raises(BadInput, match=r"0\.tar: 0\.txt is not next to .* of its sample; .* tar --sort=name"):
        sources.load(str(data))


def test_dots_that_hide_the_suffix_of_a_member_are_named(data):
    """webdataset/webdataset#237, huggingface/datasets#7150: "22.05.png" has the suffix "05.png"."""
    members = [(f"photo {i}.{7 * i} (1).{suffix}", b"") for i in range(N) for suffix in ("png", "txt")]
    tar(data / "0.tar", members)
    with pytest.raises(BadInput, match=r"0\.tar: in photo 15\.105 \(1\)\.\w+, '105 \(1\)\.\w+' counts as the suffix"):
        sources.load(str(data))


def test_a_sample_without_a_member_that_others_have_is_a_row(data):
    """huggingface/datasets#7144: KeyError: 'png'."""
    tar(
        data / "0.tar",
        [(f"{i}.{s}", c) for i in range(N) for s, c in (("txt", b"a"), ("png", pixels(i))) if i or s == "txt"],
    )
    rows = sources.load(str(data))["train"]
    assert [row["png"] is None for row in rows] == [True] + [False] * (N - 1)


def test_files_whose_first_rows_are_empty_keep_what_all_have(data, capsys):
    """huggingface/datasets#7092: "Couldn't cast array of type struct<...> to null"."""
    (data / "a.jsonl").write_text(lines({"text": f"poem {i}", "notes": [], "by": None} for i in range(N)))
    (data / "b.jsonl").write_text(lines({"text": f"ode {i}", "notes": [{"n": 1}], "by": "me"} for i in range(N)))
    parts = documents.load(str(data))
    assert sum(map(len, parts)) == 2 * N
    assert "left out the columns by, notes: they are not in all files" in capsys.readouterr().out


def test_tables_with_a_column_more_keep_what_all_have(data):
    (data / "a.csv").write_text("text,n\n" + "".join(f"poem {i},1\n" for i in range(N)))
    (data / "b.csv").write_text("text,n,more\n" + "".join(f"ode {i},1,2\n" for i in range(N)))
    rows = sources.load(str(data))["train"]
    assert rows.column_names == ["text", "n"] and len(rows) == 2 * N


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", "text\n1\n2\n", "int64"),
        ("a.jsonl", lines([{"text": 1}, {"text": "a"}]), "values of several kinds"),
    ],
)
def test_a_text_column_without_texts_is_named_with_what_it_holds(name, content, kind, data):
    """huggingface/datasets#5827, simpletransformers#127: 'float' object has no attribute 'strip'."""
    (data / name).write_text(content)
    with pytest.raises(BadInput, match=rf"no column of strings among text \({kind}\)"):
        documents.load(str(data))


@pytest.mark.parametrize(
    ("name", "remedy"), [("a.m4a", "ffmpeg"), ("a.HEIC", "heif-convert"), ("a.docx", "soffice"), ("a.pdf", "pdftotext")]
)
def test_files_that_are_not_read_are_named_with_what_converts_them(name, remedy, data):
    """clovaai/voxceleb_trainer#126: "Must the datasets convert to wav from m4a?"."""
    (data / name).write_bytes(b"content")
    with pytest.raises(BadInput, match=rf"it holds 1 {Path(name).suffix.lower()} files, .* convert them with {remedy}"):
        sources.load(str(data))


def test_stereo_of_24_bits_is_read(data):
    """chrisdonahue/wavegan#96: "the wav file has 24-bit data"."""
    soundfile.write(data / "a.wav", np.full((44100, 2), 0.5), 44100, subtype="PCM_24")
    (wave,) = waves.read(recordings.load(str(data))["train"], "audio", 44100, 5.0)
    assert wave.shape == (44100,) and np.allclose(wave, 0.5, atol=1e-4)


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_the_separator_of_a_table_of_captions_is_found(separator, data):
    """mlfoundations/open_clip#144, #789, #1083: KeyError: 'filepath'."""
    images(data / "images")
    rows = [f" images/{i}.png {separator} the picture {i} \n" for i in range(N)]
    (data / "train.csv").write_text(f" filepath {separator} title \n" + "".join(rows))
    rows = sources.load(str(data / "train.csv"))["train"]
    assert columns(rows.column_names, None, None) == ("image", "title") and clean(rows["title"][3]) == ["the picture 3"]


def test_images_that_a_table_names_in_vain_are_named_with_their_path(data):
    """mlfoundations/open_clip#122: "No such file or directory: 'cc_data/train/771/71771.jpg'"."""
    images(data / "images", 10)
    (data / "a.csv").write_text("filepath,title\n" + "".join(f"images/{i}.png,picture {i}\n" for i in range(N)))
    rows, (_, processor) = sources.load(str(data))["train"], tiny_clip.build()
    with pytest.raises(BadInput, match=r"of 20 rows, 10 images that cannot be decoded \(row 10: .*data/images/10\.png"):
        Pairs(rows, processor, 16, "image", "title")


def test_a_logo_beside_a_table_of_texts_does_not_make_it_images(data):
    images(data / "assets", 1)
    (data / "train.jsonl").write_text(lines({"text": f"poem {i}", "cover": "assets/0.png"} for i in range(N)))
    for source in (data, data / "train.jsonl"):
        assert sum(map(len, documents.load(str(source), "text"))) == N
