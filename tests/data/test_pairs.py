import io
import logging
import os

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor

from mmssl.data.image_text import pairs
from mmssl.data.image_text.pairs import Pairs, StreamedPairs, clean, columns
from mmssl.data.images import on_demand
from mmssl.data.images.decoding import decode
from mmssl.data.images.on_demand import Table
from mmssl.data.loader import Loader
from mmssl.data.text.tokens import Tokens, inner_pieces, train_clip_tokenizer
from mmssl.errors import BadInput

SIZE = 8
FEATURES = datasets.Features({"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def processor() -> CLIPProcessor:
    texts = [f"{word} number {i}" for i in range(100) for word in ("first", "second", "third")]
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return CLIPProcessor(image_processor=images, tokenizer=train_clip_tokenizer(texts, 400))


def rows(n: int = 40, broken=(), silent=(), captions: int = 3) -> datasets.Dataset:
    """Image i is of shade i, and its captions say so."""
    found = []
    for i in range(n):
        image = {"bytes": b"broken"} if i in broken else np.full((9, 9, 3), i, dtype=np.uint8)
        if not isinstance(image, dict):
            image = Image.fromarray(image)
        texts = [f"{word} number {i}" for word in ("first", "second", "third")[:captions]]
        found.append({"image": image, "captions": ["", "  "] if i in silent else texts})
    return datasets.Dataset.from_list(found, features=FEATURES)


def shade_and_text(batch: dict, tokenizer) -> list[tuple[int, str]]:
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    # CLIP's tokenizer reads a number digit by digit: "number 1 2"
    return [(int(p.float().mean()), "".join(t.split())) for p, t in zip(batch["pixel_values"], texts, strict=True)]


def test_image_and_caption_belong_together_also_where_rows_were_left_out(processor):
    data = Pairs(rows(40, broken=[3], silent=[7, 8]), processor, 20, "image", "captions")
    assert len(data) == 37 and data.rows.tolist() == [i for i in range(40) if i not in (3, 7, 8)]
    drawn = shade_and_text(data.__getitems__(list(range(37))), processor.tokenizer)
    assert all(text.split("number")[1] == str(shade) for shade, text in drawn)
    assert [shade for shade, _ in drawn] == data.rows.tolist()


def test_each_epoch_draws_its_own_captions_and_all_are_drawn(processor):
    data = Pairs(rows(), processor, 20, "image", "captions", seed=1)
    drawn = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        drawn.append([text for _, text in shade_and_text(data.__getitems__(list(range(40))), processor.tokenizer)])
    assert drawn[0] == drawn[2] != drawn[1]
    counts = [sum(text.startswith(word) for text in drawn[0] + drawn[1]) for word in ("first", "second", "third")]
    assert min(counts) > 80 / 3 / 2


def test_another_seed_draws_other_captions(processor):
    drawn = [Pairs(rows(), processor, 20, "image", "captions", seed=s).__getitems__(list(range(40))) for s in (0, 1)]
    assert not torch.equal(drawn[0]["input_ids"], drawn[1]["input_ids"])


def test_several_captions_of_an_image_are_drawn_each_for_itself(processor):
    one, two = (Pairs(rows(), processor, 20, "image", "captions", seed=1, captions_per_image=n) for n in (1, 2))
    everything = list(range(40))
    drawn, alone = two.__getitems__(everything), one.__getitems__(everything)
    assert drawn["input_ids"].shape[:2] == drawn["attention_mask"].shape[:2] == (40, 2)
    texts = []
    for number in range(2):
        part = {"pixel_values": drawn["pixel_values"], "input_ids": drawn["input_ids"][:, number]}
        texts.append([text for _, text in shade_and_text(part, processor.tokenizer)])
    assert texts[0] == [text for _, text in shade_and_text(alone, processor.tokenizer)]
    assert 5 < sum(a == b for a, b in zip(*texts, strict=True)) < 25  # a third of them
    assert all(text.split("number")[1] == str(shade) for part in texts for shade, text in enumerate(part))


def test_one_caption_drawn_twice_is_changed_twice(processor):
    data = Pairs(rows(captions=1), processor, 20, "image", "captions", word_dropout=0.5, captions_per_image=2)
    ids = data.__getitems__(list(range(40)))["input_ids"]
    assert (ids[:, 0] == ids[:, 1]).all(1).sum() < 20


def test_a_batch_is_trimmed_to_its_longest_caption(processor):
    data = Pairs(rows(), processor, 20, "image", "captions")
    batch = data.__getitems__([0, 1, 2])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1] < 20


def test_what_is_left_out_is_counted_and_named(processor, caplog):
    with caplog.at_level(logging.WARNING):
        Pairs(rows(40, broken=[3], silent=[7, 8]), processor, 20, "image", "captions")
    assert "left out of 40 rows: 1 images that cannot be decoded (row 3: UnidentifiedImageError" in caplog.text
    assert "and 2 images without a caption (row 7; row 8)" in caplog.text


@pytest.mark.parametrize("bad", [{"broken": range(5)}, {"silent": range(5)}, {"broken": [0, 1], "silent": [2, 3, 4]}])
def test_more_than_a_tenth_unusable_is_an_error(bad, processor):
    with pytest.raises(BadInput, match="of 40 rows, .*too many"):
        Pairs(rows(40, **bad), processor, 20, "image", "captions")


def test_captions_of_a_megabyte_are_left_out_named_and_never_tokenised(processor, caplog):
    data, endless = rows().to_list(), "x" * 1_000_000
    data[3]["captions"], data[5]["captions"] = [endless], [endless, "number 5"]
    found = Pairs(datasets.Dataset.from_list(data, features=FEATURES), processor, 20, "image", "captions")
    assert found.captions[4] == ["number 5"] and 3 not in found.rows
    assert "1 images without a caption (row 3: longer than 10,000 characters)" in caplog.text
    assert "left out captions of 1 images: longer than 10,000 characters (row 5)" in caplog.text
    assert pairs.all_captions(datasets.Dataset.from_list(data[3:6], features=FEATURES), "captions")[-1] == "number 5"
    stream = streamed(datasets.Dataset.from_list(data[3:6], features=FEATURES), processor)
    assert shade_and_text(stream.__getitems__([0]), processor.tokenizer)[0][0] == 4
    assert "row 0: no caption: longer than 10,000 characters" in caplog.text


def test_a_stream_leaves_out_what_is_no_regular_file_and_says_what_it_scales(processor, tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe.png")
    deep = io.BytesIO()
    Image.fromarray(np.full((9, 9), 257 * 40, np.uint16)).save(deep, "PNG")
    found = [{"image": {"path": str(tmp_path / "pipe.png")}, "captions": ["a"]}]
    found += [{"image": {"bytes": deep.getvalue()}, "captions": ["b"]}] * 2
    stream = streamed(datasets.Dataset.from_list(found, features=FEATURES), processor)
    assert stream.__getitems__([0, 1, 2])["pixel_values"].unique().tolist() == [40]
    assert "pipe.png is a named pipe, not a regular file" in caplog.text
    assert caplog.text.count("pairs of mode I;16, row 1 first, are scaled to 8 bits") == 1


def test_no_rows_are_an_error(processor):
    with pytest.raises(BadInput, match="no rows"):
        Pairs(rows(1).select([]), processor, 20, "image", "captions")


def test_a_missing_column_is_named_with_those_there_are_and_the_flag():
    data = datasets.Dataset.from_dict({"photo_file": ["a"], "words": ["b"]})
    with pytest.raises(BadInput, match="no image column among photo_file, words: name it with --image_column"):
        columns(data.column_names, None, "words")
    with pytest.raises(BadInput, match="no caption column among photo_file, words: name it with --caption_column"):
        columns(data.column_names, "photo_file", None)
    with pytest.raises(BadInput, match="--caption_column word: the data has no such column, only photo_file, words"):
        columns(data.column_names, "photo_file", "word")
    assert columns(data.column_names, "photo_file", "words") == ("photo_file", "words")


def test_captions_are_cleaned_of_what_is_empty():
    assert clean(" a b ") == ["a b"] and clean(["a", "", None, "  ", "b"]) == ["a", "b"]
    assert clean(None) == clean("") == clean(7) == []


def test_a_caption_longer_than_max_length_keeps_its_end_token(processor):
    tokenizer = processor.tokenizer
    tokens = Tokens(["number " * 50, "number 1"], tokenizer, 10)
    batch = tokens[torch.tensor([0, 1])]
    assert batch["input_ids"].shape == (2, 10)
    assert batch["input_ids"][0, 0] == tokenizer.bos_token_id and batch["input_ids"][0, -1] == tokenizer.eos_token_id
    assert batch["attention_mask"].sum(1).tolist() == [10, len(tokenizer("number 1")["input_ids"])]


def test_tokens_are_those_of_the_tokenizer_also_across_its_portions(processor, monkeypatch):
    monkeypatch.setattr(Tokens, "AT_ONCE", 3)
    texts = [f"first number {i}" * (1 + i % 3) for i in range(10)]
    batch = Tokens(texts, processor.tokenizer, 20)[torch.arange(10)]
    expected = processor.tokenizer(texts, padding=True, truncation=True, max_length=20, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


# streams


def streamed(data: datasets.Dataset, processor, **captions) -> StreamedPairs:
    pixels = pairs.Captioned(Table(data, ("image", "captions")), len(data), processor.image_processor, "pairs")
    return StreamedPairs(pixels, torch.arange(len(data)), processor.tokenizer, 20, **captions)


def test_a_stream_gives_the_pixels_and_captions_of_the_same_pairs_and_the_next_for_a_bad_one(processor):
    data = rows(40, broken=[3], silent=[7, 8])
    batches = list(Loader(streamed(data, processor), 5).epoch(0))
    drawn = [pair for batch in batches for pair in shade_and_text(batch, processor.tokenizer)]
    shades = [shade for shade, _ in drawn]
    assert sorted(shades) == sorted({3: 4, 7: 9, 8: 9}.get(i, i) for i in range(40))
    assert all(text.split("number")[1] == str(shade) for shade, text in drawn)
    assert batches[0]["pixel_values"].dtype == torch.uint8
    expected = decode(data[shades[0]]["image"], processor.image_processor)
    assert np.array_equal(batches[0]["pixel_values"][0], expected)


ALTERED = {"word_dropout": 0.2, "word_noise": 0.3, "captions_per_image": 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_stream_from_a_position_on_are_those_of_the_whole_epoch(workers, processor):
    loader = Loader(streamed(rows(), processor, **ALTERED), 5)
    first, second = (list(loader.epoch(epoch)) for epoch in (0, 1))
    assert not torch.equal(first[0]["pixel_values"], second[0]["pixel_values"])
    again = Loader(streamed(rows(), processor, **ALTERED), 5, num_workers=workers)
    for resumed, expected in zip(again.epoch(1, start=5), second[5:], strict=True):
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(resumed[name], expected[name]) for name in resumed)


def test_what_a_stream_draws_for_a_pair_depends_on_no_other_pair_of_the_batch(processor):
    stream = streamed(rows(), processor, **ALTERED)
    together = stream.__getitems__(list(range(40)))
    for row in (0, 7, 39):
        alone = stream.__getitems__([row])
        for number in range(2):
            part, whole = ({k: b[k][i, number][None] for k in ("input_ids", "attention_mask")}
                           for b, i in ((alone, 0), (together, row)))  # fmt: skip
            assert words_of(part, 0) == words_of(whole, 0)


def test_a_stream_draws_captions_as_asked(processor):
    loader = Loader(streamed(rows(), processor, first_caption=1.0), 5)
    drawn = [text for batch in loader.epoch(0) for _, text in shade_and_text(batch, processor.tokenizer)]
    assert len(drawn) == 40 and all(text.startswith("first") for text in drawn)
    loader = Loader(streamed(rows(), processor, captions_per_image=3), 5)
    ids = torch.cat([F.pad(batch["input_ids"], (0, 20 - batch["input_ids"].shape[2])) for batch in loader.epoch(0)])
    assert ids.shape == (40, 3, 20) and 5 < (ids[:, 0] == ids[:, 1]).all(1).sum() < 25
    loader = Loader(streamed(rows(), processor, word_dropout=0.5), 5)
    fewer = [text for batch in loader.epoch(0) for _, text in shade_and_text(batch, processor.tokenizer)]
    assert all(fewer) and 10 < sum("number" in text for text in fewer) < 35


def test_a_stream_that_is_mostly_broken_ends_the_run(processor, monkeypatch):
    monkeypatch.setattr(on_demand, "MANY", 20)
    loader = Loader(streamed(rows(40, broken=range(0, 40, 3)), processor), 5)
    with pytest.raises(BadInput, match="pairs cannot be used, row .*: too many to leave out"):
        list(loader.epoch(0))


def words_of(altered: dict, row: int) -> list[int]:
    return altered["input_ids"][row][altered["attention_mask"][row].bool()].tolist()


def test_garbled_words_become_pieces_of_words_and_whole_ones_stay():
    texts = ["red square", "blue circle with dots", "green"] * 200
    tokenizer = train_clip_tokenizer(texts, 600)
    tokens, pieces, rows = Tokens(texts, tokenizer, 77), inner_pieces(tokenizer), torch.arange(len(texts))
    altered = tokens.altered(rows, 0.0, 0.3, pieces, seed=0, epoch=0)
    kept = garbled = 0
    for row, text in enumerate(texts):
        plain, found = tokenizer(text)["input_ids"], words_of(altered, row)
        assert found[0] == plain[0] and found[-1] == plain[-1]
        assert set(found) <= set(plain) | set(pieces.tolist())
        assert any(token in plain for token in found[1:-1])  # never a text without a word
        kept += sum(token in plain for token in found[1:-1])
        garbled += len(plain) - 2 - sum(token in plain for token in found[1:-1])
    assert 0.15 < garbled / (kept + garbled) < 0.3  # of single words, none


def test_what_is_drawn_for_a_text_depends_on_no_other_text_of_the_batch():
    texts = [f"a {colour} square on a {other} wall" for colour in ("red", "blue") for other in ("red", "blue")]
    tokenizer = train_clip_tokenizer(texts, 600)
    tokens, options = Tokens(texts, tokenizer, 77), (0.2, 0.4, inner_pieces(tokenizer), 3, 5)
    together = tokens.altered(torch.arange(4), *options)
    for row in range(4):
        assert words_of(tokens.altered(torch.tensor([row]), *options), 0) == words_of(together, row)


def test_garbling_never_makes_a_text_longer_than_the_model_takes():
    texts = ["one two three four five six seven eight"] * 50
    tokenizer = train_clip_tokenizer(texts, 600)
    for longest in (10, 12, 30):
        altered = Tokens(texts, tokenizer, longest).altered(
            torch.arange(50), 0.0, 0.5, inner_pieces(tokenizer), seed=0, epoch=0
        )
        assert altered["input_ids"].shape[1] <= longest
