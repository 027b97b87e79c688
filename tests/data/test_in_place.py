"""Documents read where they lie: what the blocks of files hold, which sequences an epoch shows, what is read for it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from processes import Processes
from small import arguments
from tiny.bert import LENGTH, WORDS, tokenizer

from mmssl.data import windows
from mmssl.data.loader import Loader
from mmssl.data.text import documents, in_place, packed
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.training.start import start

KINDS = ("parquet", "text", "jsonl")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    small_blocks(monkeypatch.setattr)


def small_blocks(put=setattr) -> None:
    put(windows, "WINDOW", 6000)  # bytes: a few blocks
    put(in_place, "BLOCK", 1000)
    put(in_place, "REACH", 200)
    put(in_place, "ROWS", 10)


def texts(n: int = 200) -> list[str]:
    """Documents, each with words of its own."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 20)) + f" {i}" for i in range(n)]


def write(folder: Path, kind: str, rows: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        for number, chosen in enumerate(np.array_split(np.array(rows), 3)):
            pq.write_table(pa.table({"text": chosen}), folder / f"{number}.parquet", row_group_size=10)
        return folder
    if kind == "text":
        (folder / "a.txt").write_text("\n\n".join(rows))
        return folder / "a.txt"
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder / "a.jsonl"


def sequences(place: Path, held_out: int = 10) -> packed.PackedInPlace:
    train, test = documents.load(str(place), held_out=held_out, streaming=True)
    return packed.train_and_held_out(train, test, tokenizer(), LENGTH, seed=3)[0]


def batches(loader: Loader, epoch: int = 0, from_batch: int = 0) -> list[dict[str, list]]:
    return [{name: value.tolist() for name, value in batch.items()} for batch in loader.epoch(epoch, from_batch)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_document_is_held_out_or_trained_on_and_none_is_both(kind, tmp_path):
    train, test = documents.load(str(write(tmp_path / "data", kind, texts())), held_out=10, streaming=True)
    held, left = list(test["text"]), list(train.each())
    if kind == "text":  # those that a block's end cuts in two are two
        assert not {each.strip() for each in held} & {each.strip() for each in left}
        words = " ".join(left + held).split()
        assert sorted(words) == sorted(" ".join(texts()).split())
    else:
        assert sorted(held + left) == sorted(texts())
    assert 5 <= len(held) <= 10


def test_a_document_equal_to_a_held_out_one_is_not_trained_on(tmp_path):
    place = write(tmp_path / "data", "parquet", texts(60) * 2)
    train, test = documents.load(str(place), held_out=10, streaming=True)
    assert not set(test["text"]) & set(train.each())


def test_the_test_data_of_the_source_is_held_out_up_to_the_flag(tmp_path):
    place = write(tmp_path / "data", "parquet", texts(60))
    pq.write_table(pa.table({"text": ["one", "two", "three"]}), place / "test.parquet")
    train, test = documents.load(str(place), held_out=2, streaming=True)
    assert list(test["text"]) == ["one", "two"] and len(list(train.each())) == 60


@pytest.mark.parametrize(
    "content",
    [
        "\r\n\r\n".join(texts()),
        "\n".join(texts()),  # no blank line: a block is a document
        " ".join(texts()),  # no line
        "é" * 3000,  # no word
        "\n \n" + "\n\t\n\n".join(texts()) + "\n\n\n",
        "ab\n\n" * 2000,
    ],
)
@pytest.mark.parametrize("block", [97, 1000])
def test_blocks_of_a_text_file_hold_all_of_it_once(content, block, tmp_path, monkeypatch):
    monkeypatch.setattr(in_place, "BLOCK", block)
    (tmp_path / "a.txt").write_bytes(content.encode())
    read = in_place.Texts(in_place.TextFiles([str(tmp_path / "a.txt")]))
    found = [text for block in range(len(read.size)) for text in read.blocks[block].texts()]
    assert "".join("".join(found).split()) == "".join(content.split())
    assert not any("\r" in text or "\n\n" in text or text.isspace() for text in found)


def test_packed_text_is_unpacked_first(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(texts()).encode()))
    assert len(sequences(tmp_path / "a.txt.gz")) > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_is_a_run_of_the_tokens_of_its_block(kind, tmp_path):
    data = sequences(write(tmp_path / "data", kind, texts()))
    tok = tokenizer()
    for row in range(0, len(data), 7):
        number = int(np.searchsorted(data.begin, row, side="right")) - 1
        tokens, _ = packed._joined(list(data.texts.blocks[number].texts()), tok, packed.separated(tok))
        around = "".join(map(chr, [*tokens, *tokens]))
        inside = "".join(map(chr, data.__getitems__([row])["input_ids"][0, 1:-1].tolist()))
        assert len(inside) == LENGTH - 2 and inside in around


AROUND = [2], [3]  # as of a language model whose documents have a beginning and an end


def next_tokens(place: Path, whole: bool = False) -> packed.NextTokensInPlace:
    train, _ = documents.load(str(place), held_out=10, whole=whole, streaming=True)
    return packed.next_tokens(train, documents.some(train), tokenizer(), LENGTH, AROUND, seed=3)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_next_tokens_are_a_run_of_the_tokens_of_their_block(kind, tmp_path):
    data = next_tokens(write(tmp_path / "data", kind, texts()))
    begun = 0
    for row in range(0, len(data), 7):
        number = int(np.searchsorted(data.begin, row, side="right")) - 1
        tokens, _ = packed._joined(list(data.texts.blocks[number].texts()), tokenizer(), AROUND)
        batch = data.__getitems__([row])
        ids = torch.cat([batch["input_ids"][0, :1], batch["targets"][0]]).tolist()
        assert "".join(map(chr, ids)) in "".join(map(chr, [*tokens, *tokens]))
        assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1]) and len(ids) == LENGTH + 1
        begun += ids[0] == AROUND[0][0]
    assert begun < len(data) / 7 / 2  # most begin within a document


def test_a_place_in_the_last_word_of_a_document_is_the_beginning_of_the_next():
    block = in_place.Block(b"one two\nsix ten\n", np.array([[0, 8], [8, 16]]))
    found = [block.at((byte + 0.5) / 16) for byte in (0, 2, 5, 7, 9, 13)]
    assert found == [(0, 0), (0, 4), (1, 0), (1, 0), (1, 4), (0, 0)]


def test_a_text_file_is_one_document_where_it_is_not_cut_at_blank_lines(tmp_path):
    data = next_tokens(write(tmp_path / "data", "text", texts()), whole=True)
    assert all(len(data.texts.blocks[number].spans) <= 1 for number in range(len(data.count)))
    held_out = sum(not len(data.texts.blocks[number].spans) for number in range(len(data.count)))
    assert 1 <= held_out <= len(data.count) / 10


def test_a_tokenizer_is_trained_on_some_of_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "SOME", 2000)
    train, test = documents.load(str(write(tmp_path / "data", "parquet", texts())), held_out=10, streaming=True)
    found = documents.some(train)["text"]
    assert 2000 <= sum(map(len, found)) < 2200 and set(found) <= set(train.each())


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_shows_nearly_all_of_the_text_once(kind, tmp_path):
    rows = [" ".join(f"{i}" for i in range(200 * n, 200 * n + 200)) for n in range(200)]  # each word once
    place = write(tmp_path / "data", kind, rows)
    seen = times_seen(place, rows, 32)
    # the sizes of these small row groups count a fifth of page headers: so much is seen twice
    assert (seen > 0).mean() > 0.96 and (seen == 1).mean() > (0.7 if kind == "parquet" else 0.85)


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_files_and_row_groups_smaller_than_half_a_sequence_are_read(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(in_place, "BLOCK", 10_000)
    rows = [" ".join(map(str, range(n, n + (50 if n % 10_000 == 0 else 5)))) for n in range(0, 200_000, 1000)]
    if kind == "text":
        for number, row in enumerate(rows):
            (tmp_path / f"{number:03}.txt").write_text(row)
    else:
        pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=1)
    assert (times_seen(tmp_path, rows, 64) > 0).mean() > 0.9


def times_seen(place: Path, rows: list[str], length: int) -> np.ndarray:
    """How often one epoch of sequences of so many tokens shows each word of the training data."""
    train, test = documents.load(str(place), held_out=10, streaming=True)
    counts = {word: 0 for text in train.each() for word in text.split()}
    tok = packed_tokenizer(rows)
    data = packed.train_and_held_out(train, test, tok, length)[0]
    for i in range(len(data)):
        for word in tok.decode(data.__getitems__([i])["input_ids"][0]).split():
            if word in counts:
                counts[word] += 1
    return np.array(list(counts.values()))


def packed_tokenizer(rows: list[str]):
    """Each word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = dict.fromkeys(word for row in rows for word in row.split())
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, "[UNK]"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=table, **names)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_from_a_position_on_are_those_of_the_whole_epoch(kind, workers, tmp_path):
    data = sequences(write(tmp_path / "data", kind, texts()))
    whole = batches(Loader(data, 4), epoch=2)
    assert len(whole) > 50
    for position in (20,) if workers else (0, 1, 20, len(whole) - 1):
        assert batches(Loader(data, 4, num_workers=workers), 2, position) == whole[position:]


def test_epochs_are_in_other_orders_and_begin_sequences_elsewhere(tmp_path):
    data = sequences(write(tmp_path / "data", "text", texts()))
    first, second = (batches(Loader(data, 4), epoch)[0] for epoch in (0, 1))
    assert first["index"] != second["index"]
    ids = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        ids.append(data.__getitems__([5])["input_ids"])
    assert torch.equal(ids[0], ids[2]) and not torch.equal(ids[0], ids[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_reads_only_what_is_left_of_the_epoch(kind, tmp_path):
    data = sequences(write(tmp_path / "data", kind, texts(1000)))
    blocks, load, read = len(data.texts.size), data.texts.blocks.load, []
    data.texts.blocks.load = lambda block: read.append(block) or load(block)
    whole = len(list(Loader(data, 4).epoch(0)))
    twice = data.order(0).lanes  # blocks in which a lane ends and the next begins
    assert blocks >= 80 and len(read) < len(set(read)) + twice
    read.clear()
    data.texts.blocks.blocks.clear()
    position = whole * 9 // 10
    assert len(list(Loader(data, 4).epoch(1, start=position))) == whole - position
    assert blocks / 10 - 1 <= len(read) < blocks / 10 + 8  # a tenth of the text, and the rest of its window


def read(place: Path, folders: dict[str, Path], workers: int) -> None:
    start(arguments(place))
    small_blocks()
    found = {k: batches(Loader(sequences(f), 2, num_workers=workers), from_batch=5) for k, f in folders.items()}
    (place / f"{rank()}.json").write_text(json.dumps(found))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_what_one_sees(workers, tmp_path):
    folders = {kind: write(tmp_path / kind, kind, texts(60)) for kind in KINDS}
    Processes(read, tmp_path, folders, workers, log=tmp_path / "log.txt", world=2).succeed(timeout=60)
    parts = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)]
    for kind, folder in folders.items():
        joined = [{name: a[name] + b[name] for name in a} for a, b in zip(*(p[kind] for p in parts), strict=True)]
        assert joined == batches(Loader(sequences(folder), 4), from_batch=5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "a.txt: no text: empty"),
        ("a.txt", b" \n\t\n", "too little text to hold out a part of it and train on the rest; leave --streaming out"),
        ("a.txt", b"one", "too little text to hold out a part of it and train on the rest; leave --streaming out"),
        ("a.txt", "one\n\ntwo caf\xe9\n".encode("latin1"), r"a\.txt, near byte 12: 0xe9 is not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=said):
        documents.load(str(tmp_path / name), streaming=True)


def test_blocks_too_small_for_one_sequence_are_refused(tmp_path):
    train, test = documents.load(str(write(tmp_path / "data", "parquet", texts())), held_out=10, streaming=True)
    with pytest.raises(BadInput, match="do not fill one sequence of 4000 tokens; lower --max_seq_length"):
        packed.PackedInPlace(train, 4.0, tokenizer(), 4000)
