"""Long texts: what is cut where, and that no tokenizer hangs on them."""

from __future__ import annotations

import time
from contextlib import contextmanager

import numpy as np
import pytest
from datasets import Dataset
from tiny.bert import tokenizer

from mmssl.data.text import packed, sentences
from mmssl.data.text.pieces import LONGEST_RUN, pieces, portions, to_train_on
from mmssl.data.text.tokens import Tokens, train_bpe, train_clip_tokenizer, train_wordpiece
from mmssl.evaluation.language_model import n_gram
from mmssl.models.word_vectors import tokenizer as word_tokenizer

TEXTS = ["the cat sat on the mat, the dog ran"] * 20


@contextmanager
def within(seconds: float):
    """Of processor time, so that a busy machine fails no test."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


def test_pieces_are_the_text_cut_at_line_ends_blanks_or_anywhere():
    assert list(pieces("ab cd\nef gh", 8)) == ["ab cd\n", "ef gh"]
    assert list(pieces("ab cd ef", 6)) == ["ab cd", " ef"]
    assert list(pieces("abcdefgh", 3)) == ["abc", "def", "gh"]
    assert list(pieces("", 3)) == [""]


def test_what_a_tokenizer_is_trained_on_is_all_of_the_text_without_endless_words():
    texts = ["a b", "x" * 50_001 + " " * 3_000 + "y", ""]
    given = list(to_train_on(texts))
    assert "".join(given) == "".join(texts) and given[0] == "a b"
    assert max(map(len, given)) <= 2 * LONGEST_RUN and max(len(run) for text in given for run in text.split()) <= 1000


def test_portions_hold_no_more_texts_and_letters_than_asked():
    assert list(portions(["a", "b", "c"], 2)) == [["a", "b"], ["c"]]
    assert list(portions(["aaa", "b", "c", "dddddd", "e"], 9, 4)) == [["aaa", "b"], ["c"], ["dddddd"], ["e"]]
    assert list(portions([], 2)) == []


@pytest.mark.parametrize("endless", ["x" * 1_000_000, " " * 1_000_000 + "x", "=" * 1_000_000, "ab" * 500_000])
@pytest.mark.parametrize("train", [train_clip_tokenizer, train_wordpiece, train_bpe])
def test_a_tokenizer_is_trained_on_an_endless_word_in_seconds(train, endless):
    with within(10):
        assert len(train([*TEXTS, endless], 800, 64)) <= 800


@pytest.mark.parametrize("endless", ["x" * 1_000_000, "cat " * 250_000, "cat" + " " * 1_000_000 + "sat"])
def test_of_a_text_of_a_megabyte_only_the_beginning_is_tokenised(endless):
    trained = train_clip_tokenizer(TEXTS, 600)
    with within(0.5):
        ids = Tokens([endless, "the cat"], trained, 77)
    assert ids.ids[: ids.starts[1]].tolist()[:2] == trained(endless[:1000])["input_ids"][:2] and len(ids) == 2


def test_what_is_cut_off_unread_changes_no_token():
    text = " ".join(TEXTS) * 40
    tokens = Tokens([text], tokenizer(), 64)
    assert tokens.ids.tolist() == tokenizer()(text, truncation=True, max_length=64)["input_ids"]


def test_a_line_of_megabytes_is_numbered_in_portions(monkeypatch):
    tok = tokenizer()
    monkeypatch.setattr(packed, "portions", lambda texts, at_once: portions(texts, at_once, 100_000))
    largest = []

    class Backend:
        def __getattr__(self, name):
            return getattr(tok.backend_tokenizer, name)

        def encode_batch(self, texts, **options):
            largest.append(sum(map(len, texts)))
            return tok.backend_tokenizer.encode_batch(texts, **options)

    class Watched:
        backend_tokenizer, sep_token_id = Backend(), tok.sep_token_id

    text = "the cat sat " * 50_000
    ids, begins = packed._joined([text], Watched(), packed.separated(tok))
    assert len(ids) == len(begins) == 150_001 and len(largest) >= 6 and max(largest) <= 100_000


def test_blanks_without_end_are_cut_into_sentences_in_linear_time():
    for text in ("a b." + " " * 300_000 + "x", "a<br" + " " * 300_000 + "x", "a." + "\t \r" * 100_000 + "X"):
        with within(2):
            assert sentences.split(text)
    assert sentences.split("a. \t " + " " * 99 + "B") == ["a.", "B"]


def test_a_sentence_of_megabytes_is_cut_before_it_is_tokenised_and_its_words_are_no_vocabulary():
    text = "One two. Three " + "three " * 299_999 + "x" * 300_000
    with within(5):
        words = sentences.vocabulary([text], 100, 1)
        data = sentences.Documents([text], word_tokenizer(["one", "two", "three"], plain=True), 2, 2, max_words=50)
    assert max(map(len, words)) <= LONGEST_RUN and data.ends.tolist() == [0, 2, 52]


def test_a_million_symbols_are_counted_in_sequences_of_five_in_seconds():
    symbols = (np.random.default_rng(0).zipf(1.5, 1_000_000) % 90).astype(np.uint8)
    with within(5):
        assert 1 < n_gram(symbols[:900_000], symbols[900_000:], 90, 5) < 4


def test_documents_are_read_one_at_a_time_in_their_order():
    data = Dataset.from_dict({"text": ["a", "bb", "", "c"]}).select([3, 1, 0])
    assert list(packed.each(data)) == ["c", "bb", "a"]
