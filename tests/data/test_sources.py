import json
import os
import re
import tarfile
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tiny_clip
from datasets import ClassLabel, Dataset, Features, Image, Value
from huggingface_hub.constants import HF_HOME
from PIL import Image as PILImage
from transformers import CLIPImageProcessorPil, CLIPProcessor

from mmssl.data import sources
from mmssl.data.image_text import pairs
from mmssl.data.image_text.pairs import clean, columns
from mmssl.data.images.decoding import as_rgb, undecoded
from mmssl.errors import BadInput

N = 6
IMAGES = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
PROCESSOR = CLIPProcessor(image_processor=IMAGES, tokenizer=tiny_clip.tokenizer())


def write_images(folder: Path, n: int = N, suffix: str = ".png") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}{suffix}" for i in range(n)]
    for i, path in enumerate(paths):
        PILImage.fromarray(np.full((12, 10, 3), 20 * i, dtype=np.uint8)).save(path)
    return paths


def metadata_csv(folder: Path) -> None:
    write_images(folder)
    rows = "".join(f'{i}.png,"picture, {i}"\n' for i in range(N))
    (folder / "metadata.csv").write_text("file_name,caption\n" + rows)


def metadata_jsonl(folder: Path) -> None:
    write_images(folder / "photos")
    rows = [json.dumps({"file_name": f"photos/{i}.png", "captions": [f"picture, {i}"]}) for i in range(N)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def sidecars(folder: Path) -> None:
    for i, path in enumerate(write_images(folder / "some" / "where")):
        path.with_suffix(".txt").write_text(f"picture, {i}\n")


def caption_table_csv(folder: Path) -> None:
    write_images(folder / "Images", suffix=".jpg")
    rows = [f"{i}.jpg,picture, {i}" for i in range(N)]  # as Flickr8k comes: the comma unquoted
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))


def caption_table_txt(folder: Path) -> None:
    write_images(folder)
    (folder / "captions.txt").write_text("\n".join(f"{i}.png\tpicture, {i}" for i in range(N)))  # tabs, no header


def webdataset(folder: Path) -> None:
    for i, path in enumerate(write_images(folder, suffix=".jpg")):
        path.with_suffix(".txt").write_text(f"picture, {i}")
    with tarfile.open(folder / "shard-0.tar", "w") as tar:
        for path in sorted([*folder.glob("*.jpg"), *folder.glob("*.txt")]):
            tar.add(path, path.name)
            path.unlink()


def parquet(folder: Path) -> None:
    paths = [str(p) for p in write_images(folder)]
    captions = [[f"picture, {i}"] for i in range(N)]
    rows = Dataset.from_dict({"image": paths, "captions": captions}).cast_column("image", Image())
    rows.to_parquet(folder / "train.parquet")


LAYOUTS = [metadata_csv, metadata_jsonl, sidecars, caption_table_csv, caption_table_txt, webdataset, parquet]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_each_image_its_own_caption(layout, tmp_path):
    layout(tmp_path)
    rows = sources.load(str(tmp_path))["train"]
    image, caption = columns(rows.column_names, None, None)
    found = {int(np.asarray(row[image]).mean() / 20 + 0.5): clean(row[caption]) for row in rows}
    assert found == {i: [f"picture, {i}"] for i in range(N)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_is_read_where_it_lies(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    layout(tmp_path / "data")
    found = pairs.find(str(tmp_path / "data"), None, None, held_out=1, streaming=True)
    image, caption = found.columns
    rows = [*found.train.read(found.rows[:].tolist()), *undecoded(found.held_out, image)]
    shades = {int(np.asarray(as_rgb(row[image])).mean() / 20 + 0.5): clean(row[caption]) for row in rows}
    assert shades == {i: [f"picture, {i}"] for i in range(N)} and len(found.held_out) == 1
    assert sorted([*found.captions(), *clean(found.held_out[0][caption])]) == [f"picture, {i}" for i in range(N)]
    training = found.training(PROCESSOR, 20, 0)
    assert len(training) == N - 1 and len(training.__getitems__([0, 4])["pixel_values"]) == 2


def test_several_captions_of_an_image_stay_together(tmp_path):
    write_images(tmp_path, 2)
    (tmp_path / "captions.csv").write_text("image,caption\n0.png,a\n1.png,b\n0.png,c\n")
    rows = sources.load(str(tmp_path))["train"]
    assert list(rows["captions"]) == [["a", "c"], ["b"]]


def test_same_file_name_in_two_folders_is_told_apart_by_its_path(tmp_path):
    write_images(tmp_path / "a", 1), write_images(tmp_path / "b", 1)
    (tmp_path / "captions.csv").write_text("image,caption\na/0.png,of a\nb/0.png,of b\n")
    rows = sources.load(str(tmp_path))["train"].cast_column("image", Image(decode=False))
    assert [Path(row["image"]["path"]).parent.name for row in rows] == ["a", "b"]


@pytest.mark.parametrize("name", ["test", "validation", "val", "dev", "dev-00000-of-00001", "test_1"])
def test_files_named_after_a_held_out_split_are_held_out(name, tmp_path):
    Dataset.from_dict({"i": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    Dataset.from_dict({"i": [2]}).to_parquet(tmp_path / f"{name}.parquet")
    train, test = sources.split(sources.load(str(tmp_path)), held_out=1)
    assert (list(train["i"]), list(test["i"])) == ([0, 1], [2])


@pytest.mark.parametrize("name", ["devices", "valley", "testimony"])
def test_files_that_only_begin_like_a_held_out_split_are_training_data(name, tmp_path):
    Dataset.from_dict({"i": [0, 1]}).to_parquet(tmp_path / f"{name}.parquet")
    Dataset.from_dict({"i": [2]}).to_parquet(tmp_path / "more.parquet")
    data = sources.load(str(tmp_path))
    assert "test" not in data and sorted(data["train"]["i"]) == [0, 1, 2]


def test_held_out_rows_are_the_same_each_time_and_never_trained_on():
    data = {"train": Dataset.from_dict({"i": list(range(100))})}
    train, test = sources.split(data, held_out=7)
    again = sources.split(data, held_out=7)
    assert list(test["i"]) == list(again[1]["i"]) and len(test) == 7
    assert sorted([*train["i"], *test["i"]]) == list(range(100))


def test_at_most_a_tenth_is_held_out_and_at_least_one_row():
    for rows, expected in ((100, 10), (5, 1)):
        assert len(sources.split({"train": Dataset.from_dict({"i": list(range(rows))})}, held_out=1000)[1]) == expected


def pictures(*colours: str) -> Dataset:
    rows = [{"image": PILImage.new("RGB", (2, 2), colour), "text": str(i)} for i, colour in enumerate(colours)]
    return Dataset.from_list(rows, features=Features({"image": Image(), "text": Value("string")}))


def test_an_image_with_several_rows_stays_on_one_side():
    data = {"train": pictures(*["red", "green", "blue", "white", "black"] * 8)}
    for seed in range(3):
        train, held_out = sources.split(data, held_out=10, seed=seed, together="image")
        assert len(train) + len(held_out) == 40 and len(held_out) == 8
        assert not {str(row["image"].getcolors()) for row in held_out} & {str(r["image"].getcolors()) for r in train}
    with pytest.raises(BadInput, match="the same image"):
        sources.split({"train": pictures(*["red"] * 8)}, held_out=2, together="image")


@pytest.mark.parametrize("rows", [0, 1])
def test_data_too_small_to_split_is_refused(rows):
    with pytest.raises(BadInput, match=f"{rows} rows"):
        sources.split({"train": Dataset.from_dict({"i": list(range(rows))})}, held_out=10)


def test_an_imagefolder_with_classes_keeps_their_names(tmp_path):
    write_images(tmp_path / "cat", 2), write_images(tmp_path / "dog", 2)
    rows = sources.load(str(tmp_path))["train"]
    assert rows.features["label"] == ClassLabel(names=["cat", "dog"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/folder", "no such file or folder"),
        ("missing.parquet", "no such file or folder"),
        ("{}/empty", "no image, no recording and none of"),
        ("{}/notes.docx", "a .docx file; can read .parquet"),
        ("{}/broken.parquet", "could not be read as parquet"),
        ("{}/latin", "latin/captions.csv is not UTF-8"),
        ("{}/cp1252.csv", r"cp1252\.csv, line 2: byte 0xe9 is not UTF-8. Convert .*: iconv -f cp1252 -t utf-8 cp1252"),
        ("{}/bare", "bare/captions.csv, line 2: no ','"),
        ("{}/header", "header/captions.csv has no row"),
    ],
)
def test_what_cannot_be_read_is_named(name, said, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.docx").write_text("")
    (tmp_path / "broken.parquet").write_text("not parquet")
    (tmp_path / "cp1252.csv").write_bytes("text\nun café\n".encode("cp1252"))
    for folder, table in (("latin", "é,à".encode("latin-1")), ("bare", b"image,caption\n0.png"), ("header", b"a,b")):
        write_images(tmp_path / folder, 1)
        (tmp_path / folder / "captions.csv").write_bytes(table)
    with pytest.raises(BadInput, match=said):
        sources.load(name.format(tmp_path))
    assert "Failed to read" not in capfd.readouterr().err  # as `datasets` says it


def test_a_folder_of_images_is_no_text_and_says_so(tmp_path):
    write_images(tmp_path / "cat", 2)
    with pytest.raises(BadInput, match=r"no text: none of .*; it holds 2 images"):
        sources.load(str(tmp_path), texts=True)


def test_a_field_without_end_in_a_table_of_captions_is_named_with_its_line(tmp_path):
    write_images(tmp_path, 2)
    rest = "0.png,more words\n" * 20_000
    (tmp_path / "captions.csv").write_text('image,caption\n0.png,a\n1.png,"never closed\n' + rest)
    with pytest.raises(BadInput, match=r"captions\.csv, up to line \d+: field larger .*a quotation mark .* not closed"):
        sources.load(str(tmp_path))


@pytest.mark.parametrize("name", ["captions.csv", "0.txt", "metadata.jsonl", "captions.txt"])
def test_a_named_pipe_among_the_captions_does_not_hang(name, tmp_path):
    write_images(tmp_path, 2)
    (tmp_path / "1.txt").write_text("one")
    os.mkfifo(tmp_path / name)
    rows = sources.load(str(tmp_path))["train"]
    assert rows["captions"][1] == ["one"] and len(rows) == 2


def test_a_named_pipe_for_metadata_alone_does_not_hang(tmp_path):
    write_images(tmp_path, 2)
    os.mkfifo(tmp_path / "metadata.jsonl")
    assert sources.load(str(tmp_path))["train"].column_names == ["image"]


def test_a_table_of_captions_that_is_too_large_is_named(tmp_path):
    write_images(tmp_path, 1)
    with open(tmp_path / "captions.csv", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadInput, match=r"captions\.csv holds 1,099,512 MB, more than the 1,074 MB that are read"):
        sources.load(str(tmp_path))


def test_a_sparse_member_of_a_tar_file_is_not_unpacked_into_memory(tmp_path):
    header = tarfile.TarInfo("0.jpg")
    header.size = 1 << 33
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(1024))
    with pytest.raises(BadInput, match=r"a\.tar: 0\.jpg holds 8,590 MB, more than the 1,074 MB that are read; remove"):
        sources.load(str(tmp_path / "a.tar"))


def test_an_unreachable_hub_is_said_at_once(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    started = time.perf_counter()
    with pytest.raises(BadInput, match="somebody/something: not a file or folder.*built-in .*emoji.*HF_HUB_OFFLINE"):
        sources.load("somebody/something")
    assert time.perf_counter() - started < 15


def test_a_training_split_of_another_name_is_trained_on_not_the_test_split():
    parts = {name: Dataset.from_dict({"text": [name]}) for name in ("test.other", "test.clean", "train.100")}
    named = sources.named(parts)
    assert {part: rows["text"][0] for part, rows in named.items()} == {"train": "train.100", "test": "test.other"}


@pytest.mark.parametrize("name", ["a\udcff.wav", "a\udcff.png", "sub\udcff/a.wav"])
def test_a_folder_with_a_name_that_is_not_utf_8_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(BadInput, match="is not valid UTF-8"):
        sources.load(str(tmp_path))


def test_a_folder_of_data_that_holds_a_run_is_refused(tmp_path):
    write_images(tmp_path)
    run = tmp_path / "runs" / "one"
    (run / ".mmssl").mkdir(parents=True)
    (run / ".mmssl" / "manifest.json").write_text("{}")
    said = f"--dataset {tmp_path} holds a run of mmssl, {run}, which would be read as data: move it elsewhere"
    with pytest.raises(BadInput, match=re.escape(said)):
        sources.load(str(tmp_path))


@pytest.mark.parametrize(("value", "place"), [("", HF_HOME), ("~/x", Path.home())])
def test_the_folder_of_caches_is_never_the_working_directory(monkeypatch, value, place):
    monkeypatch.setenv("MMSSL_HOME", value)
    assert sources.home().is_relative_to(place)


def test_a_home_of_nobody_is_refused(monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", "~nobody-of-that-name/x")
    with pytest.raises(BadInput, match="MMSSL_HOME ~nobody-of-that-name/x: there is no user of that name"):
        sources.home()
