"""The layouts that tools and data sets write: each is read without a flag, with the right text beside each image."""

import csv
import errno
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Dataset, DatasetDict, Image
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage

from mmssl.data import sources
from mmssl.data.audio import recordings, waves
from mmssl.data.image_text.pairs import clean, columns
from mmssl.data.images.decoding import as_rgb, undecoded
from mmssl.data.text import documents
from mmssl.errors import BadInput

N = 20


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


def pixels(i: int) -> bytes:
    content = io.BytesIO()
    PILImage.fromarray(np.full((12, 10, 3), 10 * i, np.uint8)).save(content, "JPEG")
    return content.getvalue()


def sound(i: int, kind: str = "WAV") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, 0.3 * np.sin(np.arange(4000) * (i + 1) / 20), 8000, format=kind)
    return content.getvalue()


def put(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def say(i: int, k: int = 0) -> str:
    return f'the "red" cat, number {i}' + f" once more {k}" * bool(k)


def lines(rows) -> str:
    return "".join(f"{row}\n" for row in rows)


def tar(file: Path, members) -> None:
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def table(file: Path, rows: list[dict], delimiter: str) -> None:
    content = io.StringIO()
    writer = csv.DictWriter(content, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    put(file, content.getvalue())


def downloads(root: Path) -> None:
    """What img2dataset writes beside each shard."""
    for shard in ("00000", "00001"):
        rows = [{"url": "http://x/a.jpg", "key": f"{shard}{i:04}", "status": "success"} for i in range(10)]
        pq.write_table(pa.Table.from_pylist(rows), root / f"{shard}.parquet")
        put(root / f"{shard}_stats.json", json.dumps({"count": 10, "successes": 10}, indent=4))


def img2dataset_files(root: Path) -> None:
    for i in range(N):
        stem = root / f"{i // 10:05}" / f"{i // 10:05}{i % 10:04}"
        put(stem.with_suffix(".jpg"), pixels(i))
        put(stem.with_suffix(".txt"), say(i))
        put(stem.with_suffix(".json"), json.dumps({"caption": say(i), "error_message": None}))
    downloads(root)


def img2dataset_tar(root: Path) -> None:
    for shard in range(2):
        members = []
        for i in range(10 * shard, 10 * shard + 10):
            key, about = f"{shard:05}{i % 10:04}", json.dumps({"caption": say(i)}).encode()
            members += [(f"{key}.jpg", pixels(i)), (f"{key}.txt", say(i).encode()), (f"{key}.json", about)]
        tar(root / f"{shard:05}.tar", members)
    downloads(root)


def tar_in_upper_case(root: Path) -> None:
    tar(root / "0.tar", [pair for i in range(N) for pair in ((f"{i}.JPG", pixels(i)), (f"{i}.TXT", say(i).encode()))])


def tar_in_mixed_case(root: Path) -> None:
    names = ["JPG" if i % 2 else "jpg" for i in range(N)]
    members = [((f"{i}.{name}", pixels(i)), (f"{i}.txt", say(i).encode())) for i, name in enumerate(names)]
    tar(root / "0.tar", [member for pair in members for member in pair])


def tar_with_captions_in_json(root: Path) -> None:
    about = [json.dumps({"caption": say(i), "score": None if i < 10 else 0.5}).encode() for i in range(N)]
    tar(root / "0.tar", [pair for i in range(N) for pair in ((f"{i}.jpg", pixels(i)), (f"{i}.json", about[i]))])


def images(root: Path, name: str = "images/{}.jpg", rows=range(N)) -> None:
    for i in rows:
        put(root / name.format(i), pixels(i))


def open_clip_tsv(root: Path) -> None:
    images(root)
    table(root / "train.tsv", [{"filepath": f"images/{i}.jpg", "title": say(i)} for i in range(N)], "\t")


def open_clip_csv(root: Path) -> None:
    images(root)
    table(root / "train.csv", [{"filepath": f"images/{i}.jpg", "title": say(i)} for i in range(N)], "\t")


def pandas_csv(root: Path) -> None:
    images(root)
    rows = [{"": i, "image_path": f"images\\{i}.jpg", "caption": say(i), "width": 10} for i in range(N)]  # on Windows
    table(root / "data.csv", rows, ",")


def coco(root: Path) -> None:
    for part, rows in (("train2017", range(15)), ("val2017", range(15, N))):
        images(root / part, "{:012}.jpg", rows)
        said = [{"image_id": i, "id": 9 * i + k, "caption": say(i, k)} for i in rows for k in range(2)]
        listed = [{"file_name": f"{i:012}.jpg", "id": i, "coco_url": "http://x/a.jpg"} for i in rows]
        about = {"info": {}, "images": listed, "annotations": said}
        put(root / "annotations" / f"captions_{part}.json", json.dumps(about))
        put(root / "annotations" / f"instances_{part}.json", json.dumps(about | {"annotations": [{"image_id": 1}]}))


def flickr8k(root: Path) -> None:
    images(root, "Flicker8k_Dataset/{}_a.jpg")
    texts = root / "Flickr8k_text"
    put(texts / "Flickr8k.token.txt", lines(f"{i}_a.jpg#{k}\t{say(i, k)}" for i in range(N) for k in range(2)))
    put(texts / "Flickr8k.lemma.token.txt", lines(f"{i}_a.jpg#0\tlemma {say(i)}" for i in range(N)))
    put(texts / "ExpertAnnotations.txt", lines(f"{i}_a.jpg\t{(i + 1) % N}_a.jpg#2\t1\t1\t2" for i in range(N)))
    put(texts / "Flickr_8k.trainImages.txt", lines(f"{i}_a.jpg" for i in range(15)))
    put(texts / "readme.txt", "If you publish, cite the work.\nSee the images, such as 1_a.jpg.\n")


def flickr8k_of_kaggle(root: Path) -> None:
    images(root, "Images/{}.jpg")
    put(
        root / "captions.txt", lines(["image,caption", *(f"{i}.jpg,{say(i, k)} ." for i in range(N) for k in range(2))])
    )


def flickr30k(root: Path) -> None:
    images(root, "flickr30k-images/{}.jpg")
    put(root / "results_20130124.token", lines(f"{i}.jpg#{k}\t{say(i, k)}" for i in range(N) for k in range(2)))


def flickr30k_of_kaggle(root: Path) -> None:
    images(root, "flickr30k_images/{}.jpg")
    rows = (f"{i}.jpg| {k}| {say(i, k)}" for i in range(N) for k in range(2))
    put(root / "results.csv", lines(["image_name| comment_number| comment", *rows]))


def karpathy(root: Path, folder: str = "", parts: tuple[str, ...] = ("train", "val", "test", "train")) -> None:
    images(root, "val2014/{}.jpg")
    rows = []
    for i in range(N):
        sentences = [{"tokens": say(i, k).split(), "raw": say(i, k), "imgid": i, "sentid": k} for k in range(2)]
        rows.append({"filename": f"{i}.jpg", "imgid": i, "sentences": sentences, "split": parts[i % 4]})
        rows[-1] |= {"filepath": folder} if folder else {}
    put(root / "dataset.json", json.dumps({"images": rows, "dataset": "coco"}))


def karpathy_coco(root: Path) -> None:
    karpathy(root, "val2014", ("train", "restval", "val", "test"))


def json_list(root: Path) -> None:
    images(root)
    rows = [{"image": f"images/{i}.jpg", "caption": say(i), "image_id": i} for i in range(N)]
    put(root / "train.json", json.dumps(rows))


def json_lines(root: Path) -> None:
    images(root)
    put(root / "a.jsonl", lines(json.dumps({"path": f"images/{i}.jpg", "captions": [say(i)]}) for i in range(N)))


def parquet_of_paths(root: Path) -> None:
    images(root)
    pq.write_table(
        pa.table({"image": [f"images/{i}.jpg" for i in range(N)], "text": list(map(say, range(N)))}), root / "a.parquet"
    )


def metadata_above_the_images(root: Path) -> None:
    images(root, "train/{}.jpg", range(15))
    images(root, "test/{}.jpg", range(15, N))
    rows = [{"file_name": f"{'train' if i < 15 else 'test'}/{i}.jpg", "text": say(i)} for i in range(N)]
    table(root / "metadata.csv", rows, ",")


def caption_files(root: Path) -> None:
    images(root)
    for i in range(N):
        put(root / "images" / f"{i}.caption", say(i))


def json_files(root: Path) -> None:
    images(root)
    for i in range(N):
        put(root / "images" / f"{i}.json", json.dumps({"caption": say(i)}))


def texts_in_another_folder(root: Path) -> None:
    images(root)
    for i in range(N):
        put(root / "texts" / f"{i}.txt", say(i))


def rows_of_images(numbers) -> Dataset:
    rows = {"image": [{"bytes": pixels(i), "path": None} for i in numbers], "caption": [say(i) for i in numbers]}
    return Dataset.from_dict(rows).cast_column("image", Image())


def saved_to_disk(root: Path) -> None:
    rows_of_images(range(N)).save_to_disk(str(root))


def saved_splits(root: Path) -> None:
    DatasetDict(train=rows_of_images(range(15)), test=rows_of_images(range(15, N))).save_to_disk(str(root))


ONE_SPLIT = [
    img2dataset_files, img2dataset_tar, tar_in_upper_case, tar_in_mixed_case, tar_with_captions_in_json, open_clip_tsv,
    open_clip_csv, pandas_csv, flickr8k, flickr8k_of_kaggle, flickr30k, flickr30k_of_kaggle, json_list, json_lines,
    parquet_of_paths, caption_files, json_files, texts_in_another_folder, saved_to_disk,
]  # fmt: skip
SPLITS = {
    **{layout: {"train": N} for layout in ONE_SPLIT},
    **{layout: {"train": 15, "test": 5} for layout in (coco, metadata_above_the_images, saved_splits)},
    **{layout: {"train": 10, "test": 5} for layout in (karpathy, karpathy_coco)},  # and 5 for validation
}


def check_images(name: Path) -> dict[str, int]:
    """The rows of each split; asserts that each image has its own captions, and each caption an image."""
    counts, seen = {}, []
    for part, rows in sources.load(str(name)).items():
        image, caption = columns(rows.column_names, None, None)
        counts[part] = 0
        for row in undecoded(rows, image):
            number = round(np.asarray(as_rgb(row[image])).mean() / 10)
            captions = clean(row[caption])
            assert captions and all(re.search(rf"^the .red. cat, number {number}\b", text) for text in captions)
            seen.append(number)
            counts[part] += 1
    assert len(set(seen)) == len(seen)
    return counts


@pytest.mark.parametrize("layout", SPLITS, ids=lambda layout: layout.__name__)
def test_every_layout_of_images_is_read_without_a_flag(layout, tmp_path):
    (tmp_path / "data").mkdir()
    layout(tmp_path / "data")
    assert check_images(tmp_path / "data") == SPLITS[layout]


@pytest.mark.parametrize(
    ("layout", "file", "rows"),
    [
        (open_clip_tsv, "train.tsv", N),
        (open_clip_csv, "train.csv", N),
        (pandas_csv, "data.csv", N),
        (flickr30k, "results_20130124.token", N),
        (json_list, "train.json", N),
        (json_lines, "a.jsonl", N),
        (parquet_of_paths, "a.parquet", N),
        (coco, "annotations/captions_train2017.json", 15),
    ],
)
def test_paths_in_a_table_count_from_the_table(layout, file, rows, tmp_path, monkeypatch):
    layout(tmp_path)
    monkeypatch.chdir("/")
    assert check_images(tmp_path / file) == {"train": rows}


def test_all_captions_of_an_image_are_one_row(tmp_path):
    flickr8k(tmp_path)
    rows = sources.load(str(tmp_path))["train"]
    assert len(rows) == N and rows[3]["captions"] == [say(3), say(3, 1)]


def test_quotation_marks_between_tabs_are_text_unless_they_enclose_it(tmp_path):
    images(tmp_path, "{}.jpg", range(3))
    put(tmp_path / "a.tsv", 'filepath\ttitle\n0.jpg\t"open\n1.jpg\t"a ""quoted"" one"\n2.jpg\t"Hello", he said\n')
    assert sources.load(str(tmp_path / "a.tsv"))["train"]["title"][:] == ['"open', 'a "quoted" one', '"Hello", he said']


def test_a_missing_image_is_not_replaced_by_one_of_the_same_name(tmp_path):
    images(tmp_path, "a/{}.jpg", range(2))
    images(tmp_path, "b/{}.jpg", range(2))
    table(tmp_path / "a.csv", [{"image": "a/0.jpg", "text": "0"}, {"image": "c/1.jpg", "text": "1"}], ",")
    paths = [row["image"]["path"] for row in undecoded(sources.load(str(tmp_path))["train"], "image")]
    assert paths == [str(tmp_path / "a" / "0.jpg"), str(tmp_path / "c" / "1.jpg")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,caption,split\n0.jpg,a cat,train\n1.jpg,a cat, sitting,train\n", "line 3: 4 fields for 3 columns; put"),
        ("image,caption,caption\n0.jpg,a,b\n1.jpg,a,b\n", "two columns called caption: rename one"),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_is_refused(text, said, tmp_path):
    images(tmp_path, "{}.jpg", range(2))
    put(tmp_path / "a.csv", text)
    with pytest.raises(BadInput, match=said):
        sources.load(str(tmp_path / "a.csv"))


def test_names_that_no_file_has_are_kept_to_be_named(tmp_path):
    images(tmp_path, "{}.jpg", range(2))
    put(tmp_path / "a.csv", f"image,text\n0.jpg,a\n1.jpg,b\n#0,c\n{'x' * 300}.jpg,d\n")
    paths = [
        (row["image"] or {}).get("path") for row in undecoded(sources.load(str(tmp_path / "a.csv"))["train"], "image")
    ]
    assert paths == [str(tmp_path / "0.jpg"), str(tmp_path / "1.jpg"), None, str(tmp_path / f"{'x' * 300}.jpg")]


def test_the_names_of_splits_may_begin_with_a_capital(tmp_path):
    images(tmp_path, "{}.jpg", range(4))
    table(
        tmp_path / "a.csv",
        [{"image": f"{i}.jpg", "text": say(i), "split": "Train" if i else "Test"} for i in range(4)],
        ",",
    )
    assert {part: len(rows) for part, rows in sources.load(str(tmp_path / "a.csv")).items()} == {"train": 3, "test": 1}


@pytest.mark.parametrize("name", ["url", "URL", "image_url"])
def test_a_table_of_urls_is_to_be_downloaded_first(name, tmp_path):
    table(tmp_path / "a.csv", [{name: f"http://x/{i}.jpg", "text": say(i)} for i in range(N)], ",")
    with pytest.raises(BadInput, match=f"no image column among {name}, text: .* download them first.* img2dataset"):
        columns(sources.load(str(tmp_path / "a.csv"))["train"].column_names, None, None)


def test_images_without_captions_are_told_how_to_get_some(tmp_path):
    images(tmp_path, "cats/{}.jpg")
    images(tmp_path, "dogs/{}.jpg")
    with pytest.raises(BadInput, match="the images have no captions: put a text file beside each"):
        columns(sources.load(str(tmp_path))["train"].column_names, None, None)


def test_an_archive_alone_in_a_folder_is_to_be_unpacked(tmp_path):
    put(tmp_path / "images.zip", b"PK\x03\x04")
    with pytest.raises(BadInput, match=r"none of .* in this folder; unpack images\.zip"):
        sources.load(str(tmp_path))
    with pytest.raises(BadInput, match=r"images\.zip is a ZIP archive, not text: unpack it and give the folder"):
        sources.load(str(tmp_path / "images.zip"))


def sounds(root: Path, name: str = "wavs/{}.wav", rows=range(N), kind: str = "WAV") -> None:
    for i in rows:
        put(root / name.format(i), sound(i, kind))


def nemo(root: Path) -> None:
    sounds(root)
    for part, rows in (("train_manifest", range(15)), ("dev_manifest", range(15, N))):
        made_elsewhere = ({"audio_filepath": f"/home/ann/wavs/{i}.wav", "duration": 0.5, "text": "a"} for i in rows)
        put(root / f"{part}.json", lines(map(json.dumps, made_elsewhere)))


def wav2vec(root: Path) -> None:
    sounds(root, "audio/{}.flac", kind="FLAC")
    for part, rows in (("train", range(15)), ("valid", range(15, N))):
        put(root / f"{part}.tsv", lines([root.absolute() / "audio", *(f"{i}.flac\t4000" for i in rows)]))


def common_voice(root: Path) -> None:
    sounds(root, "en/clips/common_voice_{}.mp3", range(N + 5), "MP3")
    parts = {"train": range(15), "dev": range(15, N), "validated": range(N), "other": range(N, N + 5)}
    for part, rows in parts.items():
        said = (f'c{i}\tcommon_voice_{i}.mp3\t"Open quote\t2' for i in rows)
        put(root / "en" / f"{part}.tsv", lines(["client_id\tpath\tsentence\tup_votes", *said]))


def librispeech(root: Path) -> None:
    for i in range(N):
        folder = root / "LibriSpeech" / ("train-clean-100" if i < 15 else "dev-clean") / str(i % 3) / "77"
        put(folder / f"{i % 3}-77-{i:04}.flac", sound(i, "FLAC"))
        put(folder / f"{i % 3}-77.trans.txt", "0-77-0000 HELLO THERE\n")
    put(root / "LibriSpeech" / "SPEAKERS.TXT", "; ID | SEX\n14 | F\n")


def esc50(root: Path) -> None:
    sounds(root, "audio/1-{}-A.wav")
    rows = [{"filename": f"1-{i}-A.wav", "fold": i % 5, "category": "dog" if i % 2 else "cat"} for i in range(N)]
    table(root / "meta" / "esc50.csv", rows, ",")


def audiofolder(root: Path) -> None:
    sounds(root)
    table(root / "metadata.csv", [{"file_name": f"wavs/{i}.wav", "transcription": "a"} for i in range(N)], ",")


def ljspeech(root: Path) -> None:
    sounds(root, "wavs/LJ{}.wav")
    put(root / "metadata.csv", lines(f"LJ{i}|Hello, there|Hello, there" for i in range(N)))


def tar_of_sounds(root: Path) -> None:
    tar(
        root / "0.tar",
        [m for i in range(N) for m in ((f"{i}.FLAC", sound(i, "FLAC")), (f"{i}.json", b'{"text": "a"}'))],
    )


@pytest.mark.parametrize(
    ("layout", "test"),
    [(nemo, 5), (wav2vec, 5), (common_voice, 5), (librispeech, 5), (esc50, 0), (audiofolder, 0), (ljspeech, 0),
     (tar_of_sounds, 0)],
)  # fmt: skip
def test_every_layout_of_recordings_is_read_without_a_flag(layout, test, tmp_path):
    (tmp_path / "data").mkdir()
    layout(tmp_path / "data")
    data = recordings.load(str(tmp_path / "data"))
    assert {part: len(rows) for part, rows in data.items()} == {"train": N - test} | ({"test": test} if test else {})
    for rows in data.values():
        assert all(len(wave) == 4000 for wave in waves.read(rows, "audio", 8000, 5.0))


def test_a_table_gives_its_recordings_their_labels(tmp_path):
    esc50(tmp_path)
    rows = sources.load(str(tmp_path))["train"]
    assert [(Path(row["audio"]).name, row["category"]) for row in rows.select([0, 1])] == [
        ("1-0-A.wav", "cat"), ("1-1-A.wav", "dog"),
    ]  # fmt: skip


def poem(i: int) -> str:
    return f"Poem {i}\nhas lines."


def text_in_a_field(root: Path) -> None:
    put(root / "a.json", json.dumps({"version": "1", "data": [{"text": poem(i)} for i in range(N)]}))


def text_called_content(root: Path) -> None:
    pq.write_table(pa.table({"id": list(map(str, range(N))), "content": list(map(poem, range(N)))}), root / "a.parquet")


def ragged_lines(root: Path) -> None:
    rows = [{"text": poem(i), "meta": {"source": "x"} if i % 2 else {"n": i}} for i in range(N)]
    put(root / "a.jsonl", lines(map(json.dumps, rows)))


def saved_texts(root: Path) -> None:
    Dataset.from_dict({"text": list(map(poem, range(N)))}).save_to_disk(str(root))


@pytest.mark.parametrize("layout", [text_in_a_field, text_called_content, ragged_lines, saved_texts])
def test_every_layout_of_texts_is_read_without_a_flag(layout, tmp_path):
    (tmp_path / "data").mkdir()
    layout(tmp_path / "data")
    parts = documents.load(str(tmp_path / "data"))
    assert sorted(text for part in parts for text in part["text"]) == sorted(map(poem, range(N)))


def test_the_parts_of_wikitext_are_told_apart(tmp_path):
    for part in ("train", "valid", "test"):
        put(tmp_path / f"wiki.{part}.tokens", f" = {part} = \n")
    train, held_out = documents.load(str(tmp_path), whole=True)
    assert (train["text"][0], held_out["text"][0]) == (" = train = \n", " = test = \n")


def test_captions_of_several_lines_do_not_hide_the_files_of_a_table(tmp_path):
    images(tmp_path, "{}.jpg")
    table(
        tmp_path / "a.csv", [{"image": f"{i}.jpg", "caption": f"{say(i)}\n\nIt sits;\nit runs."} for i in range(N)], ","
    )
    assert check_images(tmp_path) == {"train": N}


def test_files_may_be_named_without_their_suffix(tmp_path):
    """HAM10000 and other tables of Kaggle; LJSpeech."""
    images(tmp_path, "images/ISIC_{}.jpg")
    rows = [{"lesion_id": i, "image_id": f"ISIC_{i}", "dx": "nv" if i % 2 else "mel", "text": say(i)} for i in range(N)]
    table(tmp_path / "metadata.csv", rows, ",")
    assert check_images(tmp_path) == {"train": N}
    assert sources.load(str(tmp_path))["train"]["dx"][:2] == ["mel", "nv"]


def test_ljspeech_keeps_its_texts(tmp_path):
    ljspeech(tmp_path)
    assert sources.load(str(tmp_path))["train"]["note"][:2] == ["Hello, there|Hello, there"] * 2


def test_recordings_that_no_table_names_are_said_to_be_left_out(tmp_path, capsys):
    sounds(tmp_path, "{}.wav")
    table(tmp_path / "labels.csv", [{"file_name": f"{i}.wav", "label": i % 2} for i in range(3)], ",")
    assert len(sources.load(str(tmp_path))["train"]) == 3
    assert f"left out {N - 3} files of {tmp_path}, read as its tables say: they name" in capsys.readouterr().out


def test_a_cover_does_not_hide_recordings_nor_a_song_images(tmp_path, capsys):
    album, photos = tmp_path / "album", tmp_path / "photos"
    sounds(album, "{}.wav")
    put(album / "cover.jpg", pixels(0))
    assert "audio" in sources.load(str(album))["train"].column_names
    assert f"left out 1 files of {album}, read as a folder of recordings: cover.jpg" in capsys.readouterr().out
    images(photos, "{}.jpg")
    put(photos / "song.wav", sound(0))
    assert "image" in sources.load(str(photos))["train"].column_names


def test_a_small_table_does_not_hide_texts(tmp_path, capsys):
    for i in range(N):
        put(tmp_path / f"book{i}.txt", poem(i) + "\n" + poem(i + 1))
    put(tmp_path / "about.json", json.dumps([{"text": "made by m"}, {"text": "second"}]))
    train, held_out = documents.load(str(tmp_path))
    assert len(train) + len(held_out) > 2 and "made by m" not in train["text"]
    assert "read as a folder of texts, which hold most: about.json" in capsys.readouterr().out


def test_texts_with_commas_in_a_table_of_one_column_are_whole(tmp_path):
    put(tmp_path / "lines.csv", 'text\nHello, world\nNo comma\n"A quoted, one"\nWith one, two, three\n')
    found = sources.load(str(tmp_path / "lines.csv"), texts=True)["train"]["text"]
    assert list(found) == ["Hello, world", "No comma", "A quoted, one", "With one, two, three"]


def test_names_may_hold_commas(tmp_path):
    put(tmp_path / "Dickens, Charles.txt", "\n\n".join(poem(i) for i in range(20)))
    assert len(documents.load(str(tmp_path / "Dickens, Charles.txt"))[0]) > 2
    sounds(tmp_path / "recordings, 2020", "{}.wav")
    assert len(recordings.load(str(tmp_path / "recordings, 2020"))["train"]) == N


def test_an_archive_beside_what_was_in_it_is_left_alone(tmp_path):
    sounds(tmp_path, "{}.wav")
    with tarfile.open(tmp_path / "corpus.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "0.wav", "0.wav")
    assert len(sources.load(str(tmp_path))["train"]) == N


def test_what_is_wrong_with_all_recordings_may_be_mended(tmp_path):
    """Files of the same size and time, such as those of another user, before and after one may read them."""
    folder = tmp_path / "sounds"
    sounds(folder, "{}.wav")
    rows = recordings.load(str(folder))["train"]
    states = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}

    def write(damaged: bool) -> None:
        for file, (content, time) in states.items():
            file.write_bytes(bytes(len(content)) if damaged else content)
            os.utime(file, ns=(time, time))

    write(damaged=True)
    with pytest.raises(BadInput, match="recordings that cannot be used"):
        recordings.Recordings(rows, 8000, 100, 1)
    write(damaged=False)
    assert len(recordings.Recordings(rows, 8000, 100, 1)) == N


def test_integers_that_were_stored_as_floats_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", 32767 * np.sin(np.arange(4000) / 9).astype(np.float32), 8000, subtype="FLOAT")
    rows = Dataset.from_dict({"audio": [str(tmp_path / "a.wav")]})
    [said] = waves.read(rows, "audio", 8000, float("inf"))
    assert "holds samples up to 32,767, not in [-1, 1]" in said


def test_a_missing_configuration_of_the_hub_is_named_with_how_to_give_it():
    error = ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample")
    said = str(sources._not_found("user/name", error))
    assert said.startswith("--dataset user/name: choose a configuration, --dataset user/name:configuration.")
    assert "['a', 'b']" in said


def cats_and_dogs(root: Path) -> None:
    images(root, "cat/{}.jpg")
    images(root, "dog/{}.jpg")


def old_tar(root: Path) -> None:
    tar(root / "old.tar", [(f"{i}.jpg", pixels(i)) for i in range(2)])


def embeddings(root: Path) -> None:
    pq.write_table(pa.table({"x": [0.1] * N, "y": [0.2] * N}), root / "embeddings.parquet")


def state_of_a_trainer(root: Path) -> None:
    put(root / "state.json", '{"epoch": 3}')


@pytest.mark.parametrize(
    ("stray", "left_out"),
    [(old_tar, "old.tar"), (embeddings, "embeddings.parquet"), (state_of_a_trainer, None)],
)
def test_a_stray_file_does_not_hide_a_folder_of_images(stray, left_out, tmp_path, capsys):
    cats_and_dogs(tmp_path)
    stray(tmp_path)
    assert sources.shards(str(tmp_path)) is None
    rows = sources.load(str(tmp_path))["train"]
    assert len(rows) == 2 * N and rows.features["label"].names == ["cat", "dog"]
    said = f"left out 1 files of {tmp_path}, read as a folder of images and recordings, which hold most: {left_out}\n"
    assert capsys.readouterr().out == (said if left_out else "")


def two_pictures(root: Path) -> None:
    images(root, "{}.jpg", range(2))


@pytest.mark.parametrize(("stray", "left_out"), [(old_tar, "1 files of {}"), (two_pictures, "2 files of {}")])
def test_stray_files_do_not_hide_images_in_parquet(stray, left_out, tmp_path, capsys):
    rows_of_images([*range(N)] * 2).to_parquet(tmp_path / "a.parquet")
    stray(tmp_path)
    assert len(sources.load(str(tmp_path))["train"]) == 2 * N
    said = f"left out {left_out.format(tmp_path)}, read as a folder of .parquet files, which hold most: "
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("train", "test"), [("training", "testing"), ("train", "val"), ("Train", "dev"), ("train", "eval")]
)
def test_a_column_may_call_the_splits_by_other_usual_names(train, test, tmp_path):
    images(tmp_path)
    rows = [{"image": f"images/{i}.jpg", "text": say(i), "split": test if i < 5 else train} for i in range(N)]
    table(tmp_path / "a.csv", rows, ",")
    assert check_images(tmp_path) == {"train": N - 5, "test": 5}


def test_captions_of_an_image_in_two_splits_are_not_joined(tmp_path):
    images(tmp_path)
    rows = [{"image": f"images/{i}.jpg", "text": say(i, j), "split": "test" if j == 2 and i < 3 else "train"}
            for i in range(N) for j in range(3)]  # fmt: skip
    table(tmp_path / "a.csv", rows, ",")
    found = sources.load(str(tmp_path))
    assert found["test"]["captions"][:] == [[say(i, 2)] for i in range(3)]
    assert found["train"]["captions"][:] == [[say(i, j) for j in range(2 if i < 3 else 3)] for i in range(N)]


@pytest.mark.parametrize("value", ["x\ud83d", 2**63])
def test_a_value_that_no_table_holds_is_said_with_the_file(value, tmp_path):
    images(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps([{"image": "images/0.jpg", "text": "a", "more": value}] * 2))
    with pytest.raises(BadInput, match=r"a\.json: .*; repair or remove that value"):
        sources.load(str(tmp_path))


def test_a_column_of_splits_that_is_not_understood_is_named(tmp_path, capsys):
    images(tmp_path)
    rows = [{"image": f"images/{i}.jpg", "text": say(i), "split": "ab"[i % 2]} for i in range(N)]
    table(tmp_path / "a.csv", rows, ",")
    assert check_images(tmp_path) == {"train": N}
    said = f"{tmp_path / 'a.csv'}: its column split is not used, as none of its values (a; b) is train\n"
    assert capsys.readouterr().out == said


def test_folders_called_training_and_testing_are_splits(tmp_path):
    """As the images of MNIST are packed."""
    for part, rows in (("training", range(15)), ("testing", range(15, N))):
        for digit in "01":
            images(tmp_path / part / digit, "{}.png", rows)
    data = sources.load(str(tmp_path))
    assert {part: len(rows) for part, rows in data.items()} == {"train": 30, "test": 10}
    assert data["train"].features["label"].names == ["0", "1"]


def test_a_second_table_of_the_test_images_does_not_double_them(tmp_path):
    images(tmp_path)
    rows = [{"image": f"images/{i}.jpg", "text": say(i), "split": "train" if i % 4 else "test"} for i in range(N)]
    table(tmp_path / "meta.csv", rows, ",")
    table(tmp_path / "test.csv", rows[::4], ",")
    assert check_images(tmp_path) == {"train": 15, "test": 5}


@pytest.mark.parametrize("parts", [("train", "test"), ("a", "b")])
def test_tables_with_several_captions_of_an_image_and_with_one_go_together(parts, tmp_path):
    images(tmp_path)
    first, second = (tmp_path / f"{part}_captions.csv" for part in parts)
    table(first, [{"image": f"images/{i}.jpg", "caption": say(i, k)} for i in range(15) for k in range(2)], ",")
    table(second, [{"image": f"images/{i}.jpg", "caption": say(i)} for i in range(15, N)], ",")
    captions = [row for rows in sources.load(str(tmp_path)).values() for row in rows["captions"]]
    assert captions == [[say(i), say(i, 1)] for i in range(15)] + [[say(i)] for i in range(15, N)]


def test_a_list_of_files_whose_names_hold_commas_is_no_table(tmp_path):
    images(tmp_path, "a,{}.jpg")
    put(tmp_path / "list.csv", lines(f'"a,{i}.jpg"' for i in range(N)))
    assert sources.load(str(tmp_path))["train"].column_names == ["image"]


def test_a_short_table_without_a_header_keeps_its_captions(tmp_path):
    images(tmp_path, rows=range(5))
    put(tmp_path / "a.tsv", lines(f"images/{i}.jpg\t{say(i)}" for i in range(5)))
    assert check_images(tmp_path) == {"train": 5}


@pytest.mark.parametrize("key", ["image_id", "id"])
def test_a_list_in_place_of_the_number_of_an_image_is_named(key, tmp_path):
    coco(tmp_path)
    file = tmp_path / "annotations" / "captions_train2017.json"
    about = json.loads(file.read_text())
    about["annotations" if key == "image_id" else "images"][3][key] = [3]
    file.write_text(json.dumps(about))
    with pytest.raises(BadInput, match=rf"captions_train2017\.json: the {key} \[3\] is a list or an object, not a num"):
        sources.load(str(tmp_path))


def test_a_full_disk_is_not_taken_for_an_answer_of_the_hub():
    error = DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = str(sources._not_found("user/name", error))
    assert "could not be written ([Errno 28] No space left on device)" in said and "Hub" not in said


def test_a_revision_of_the_hub_is_not_supported():
    with pytest.raises(BadInput, match=r"Revisions are not supported: leave out @ and what follows$"):
        sources.load("user/name@main")
