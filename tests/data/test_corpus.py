import gzip
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from mmssl.data.built_in import wikipedia
from mmssl.data.text import blocks, corpus
from mmssl.data.text.skip_grams import Pieces
from mmssl.errors import BadInput
from mmssl.kernels import word_table

SPACES = " \t\x0b\x0c\r\x1c\x1f\u0085\u00a0\u1680\u2003\u2028\u202f\u205f\u3000"
TEXT = "the cat sat\nthe dog\n\nthe cat ran é日本 end"


def load(path, cache, **options):
    return corpus.load(path, cache=cache, say=lambda sentence: None, **{"min_count": 1} | options)


def lines(text):
    return [line.split() for line in text.split("\n") if line.split()]


def test_words_are_numbered_by_frequency_and_sentences_end_in_minus_one(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    c = load(tmp_path / "a.txt", tmp_path / "cache")
    assert c.words[:2] == ["the", "cat"] and c.counts[:2].tolist() == [3, 2]
    assert list(c.sentences()) == lines(TEXT)
    assert (c.ids == -1).sum() == 3 and c.ids.dtype == np.int32 and c.total == 10


def test_white_space_is_what_str_split_says(tmp_path):
    rng = random.Random(0)
    text = "".join(rng.choice(SPACES + "ab\n\u2010\u200bé\u00a1\u3001\u180e") for _ in range(5000))
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert list(load(tmp_path / "a.txt", tmp_path / "cache").sentences()) == lines(text)


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(tmp_path, monkeypatch, threads):
    rng = random.Random(1)
    text = "\n".join(" ".join(f"w{int(rng.paretovariate(0.5))}" for _ in range(rng.randrange(30))) for _ in range(3000))
    with gzip.open(tmp_path / "a.txt.gz", "wt") as f:
        f.write(text)
    monkeypatch.setattr(blocks, "BLOCK", 1 << 12)
    c = load(tmp_path / "a.txt.gz", tmp_path / "cache", threads=threads)
    assert list(c.sentences()) == lines(text)
    assert dict(zip(c.words, c.counts.tolist(), strict=True)) == Counter(text.split())


def test_a_table_that_grows_keeps_its_words():
    table = word_table.Table()
    words = [f"word{i}" for i in range(200_000)]
    ids, longest = table.number(np.frombuffer(" ".join(words).encode(), np.uint8))
    again, _ = table.number(np.frombuffer(" ".join(words[::-1]).encode(), np.uint8))
    assert (ids == np.arange(200_000)).all() and (again == ids[::-1]).all() and longest == 200_000
    assert [word.decode() for word in table.words()] == words


def test_without_numba_the_numbers_are_the_same(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT)
    compiled = load(tmp_path / "a.txt", tmp_path / "cache")
    monkeypatch.setattr(word_table, "COMPILED", False)
    plain = load(tmp_path / "a.txt", tmp_path / "other")
    assert plain.words == compiled.words and (plain.ids == compiled.ids).all()
    assert (plain.counts == compiled.counts).all()


def test_rare_words_are_left_out_and_the_most_frequent_kept(tmp_path):
    (tmp_path / "a.txt").write_text("a a a b b c\nc b\n")
    assert load(tmp_path / "a.txt", tmp_path / "1", min_count=3).words == ["a", "b"]
    assert load(tmp_path / "a.txt", tmp_path / "2", max_words=1).ids.tolist() == [0, 0, 0, -1, -1]


def test_plain_lower_cases_and_keeps_letters_and_digits(tmp_path):
    (tmp_path / "a.txt").write_text("“Zürich”, in 1984!\nDon't")
    assert list(load(tmp_path / "a.txt", tmp_path / "cache", plain=True).sentences()) == [
        ["zürich", "in", "1984"], ["don", "t"],
    ]  # fmt: skip


def test_files_parquet_and_datasets_give_the_same_corpus(tmp_path):
    rows = TEXT.split("\n")
    (tmp_path / "a.txt").write_text("\n".join(rows[:2]))
    (tmp_path / "b.txt").write_text("\n".join(rows[2:]))
    pq.write_table(pa.table({"text": rows, "n": range(4)}), tmp_path / "a.parquet")
    dataset = Dataset.from_dict({"text": rows})
    dataset.to_json(tmp_path / "a.jsonl")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for i, source in enumerate(
        (files, tmp_path / "a.parquet", tmp_path / "a.jsonl", dataset, dataset.to_iterable_dataset())
    ):
        assert list(load(source, tmp_path / f"cache{i}").sentences()) == lines(TEXT)


def test_the_cache_answers_until_the_file_changes(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one two")
    load(tmp_path / "a.txt", tmp_path / "cache")
    with monkeypatch.context() as m:
        m.setattr(corpus, "build", None)  # not called
        c = load(tmp_path / "a.txt", tmp_path / "cache")
    assert isinstance(c.ids, np.memmap)
    (tmp_path / "a.txt").write_text("three four five")
    assert len(load(tmp_path / "a.txt", tmp_path / "cache").words) == 3


def test_bytes_that_are_not_utf8_are_named_with_file_and_line(tmp_path):
    (tmp_path / "latin.txt").write_bytes("first\nsecond caf\xe9\n".encode("latin1"))
    with pytest.raises(BadInput, match=r"latin\.txt, line 2: byte 0xe9 is not UTF-8"):
        load(tmp_path / "latin.txt", tmp_path / "cache")


def test_a_column_that_is_not_utf8_is_named(tmp_path):
    ends, letters = np.array([0, 5, 7], np.int32), b"right\xff\xfe"
    column = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(ends), pa.py_buffer(letters)])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet: Invalid UTF8 sequence at string index 1; the column must hold"):
        load(tmp_path / "a.parquet", tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "min_count", "message"),
    [
        (b"", 1, "no words"),
        (b" \n \n", 1, "no words"),
        (b"a b b", 5, "min_count 5 leaves no word.*'b', occurs 2 times"),
    ],
)
def test_a_text_without_usable_words_is_refused(tmp_path, content, min_count, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load(tmp_path / "a.txt", tmp_path / "cache", min_count=min_count)


def test_a_line_of_a_million_words_is_one_sentence_and_announced(tmp_path):
    (tmp_path / "a.txt").write_text("a b c d " * 250_001)
    said = []
    c = corpus.load(tmp_path / "a.txt", cache=tmp_path / "cache", say=said.append)
    assert (c.ids == -1).sum() == 1 and len(c.ids) == 1_000_005
    assert "1,000,004 words" in said[0]


def test_a_missing_file_a_cut_archive_and_an_unclear_column_are_named(tmp_path):
    with pytest.raises(BadInput, match="b.txt: no such file"):
        load([tmp_path / "b.txt", tmp_path / "c.txt"], tmp_path)
    packed = gzip.compress(b"word " * 10_000)
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(BadInput, match=r"cut\.gz is not a complete gzip file"):
        load(tmp_path / "cut.gz", tmp_path / "cache")
    pq.write_table(pa.table({"title": ["a"], "body": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="title, body"):
        load(tmp_path / "a.parquet", tmp_path / "cache")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(BadInput, match=r"--text_column body: .*a\.txt is read as plain text, which has no columns"):
        load(tmp_path / "a.txt", tmp_path / "cache", column="body")


def test_phrases_join_words_that_belong_together(tmp_path):
    rng = random.Random(0)
    others = [f"w{i}" for i in range(50)]
    text = "\n".join(
        " ".join([*rng.choices(others, k=3), "new", "york", *rng.choices(others, k=3)]) for _ in range(300)
    )
    (tmp_path / "a.txt").write_text(text)
    c = corpus.join_phrases(
        load(tmp_path / "a.txt", tmp_path / "cache"), tmp_path / "phrases", threshold=2, say=lambda s: None
    )
    assert "new_york" in c.words and "york" not in c.words


def test_pieces_hold_every_word_once_and_end_like_sentences():
    ids = np.arange(2500, dtype=np.int32)
    pieces = Pieces(ids)
    batch = pieces.__getitems__([2, 0, 1])["ids"]
    assert len(pieces) == 3 and batch.shape == (3, 1001) and (batch[:, -1] == -1).all()
    assert sorted(batch[batch >= 0].tolist()) == ids.tolist()


def test_the_built_in_articles_are_running_text(tmp_path):
    wikipedia.build(tmp_path / "wikipedia")
    train = Dataset.from_parquet(str(tmp_path / "wikipedia/train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(train) > 90
    assert train[0]["title"] != "" and len(" ".join(train["text"]).split()) > 400_000
    assert not any(mark in text for text in train["text"] for mark in ("[[", "{{", "</"))
