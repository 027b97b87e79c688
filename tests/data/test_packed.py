from __future__ import annotations

import copy

import numpy as np
import pytest
from datasets import Dataset
from tiny.bert import LENGTH, WORDS, tokenizer

from mmssl.data.text import packed
from mmssl.data.text.tokens import train_bpe, train_wordpiece
from mmssl.errors import BadInput


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


def data(n: int = 300) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset.from_dict({"text": [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(n)]})


def test_every_token_is_there_once_in_order_with_a_separator_after_each_document():
    texts, tok = data(), tokenizer()
    tokens, begins = packed.number(texts, tok)
    expected = [i for text in texts["text"] for i in [*tok(text, add_special_tokens=False)["input_ids"], 3]]
    assert tokens.tolist() == expected and len(begins) == len(tokens)
    sequences = packed.Packed(tokens, begins, tok, LENGTH)
    batch = sequences.__getitems__(list(range(len(sequences))))
    inside = batch["input_ids"][:, 1:-1].flatten()
    assert inside.tolist() == expected[: len(inside)] and len(expected) - len(inside) < LENGTH - 2
    assert (batch["input_ids"][:, 0] == 2).all() and (batch["input_ids"][:, -1] == 3).all()


def test_words_begin_where_the_tokenizer_says():
    tok = tokenizer()
    tokens, begins = packed.number(Dataset.from_dict({"text": ["thecat sat", "mat"]}), tok)
    assert tok.convert_ids_to_tokens(tokens) == ["the", "##cat", "sat", "[SEP]", "mat", "[SEP]"]
    assert begins.tolist() == [True, False, True, True, True, True]


def test_long_documents_are_numbered_in_pieces_without_a_trace(monkeypatch):
    texts = data(50)
    whole, begins = packed.number(texts, tokenizer())
    monkeypatch.setattr(packed, "PIECE", 20)
    again, begins_again = packed._joined(texts["text"], tokenizer(), packed.separated(tokenizer()))
    assert (whole == again).all() and (begins == begins_again).all()


def test_a_text_is_numbered_once(monkeypatch):
    first = packed.number(data(), tokenizer())[0]
    monkeypatch.setattr(packed, "_numbered", None)  # not called
    assert (packed.number(data(), tokenizer())[0] == first).all() and isinstance(first, np.memmap)


def test_a_tokenizer_that_cuts_and_pads_finds_the_same_tokens_again(monkeypatch):
    def cutting():
        one = copy.deepcopy(tokenizer())
        one.backend_tokenizer.enable_truncation(8)
        one.backend_tokenizer.enable_padding(length=8)
        return one

    first = packed.number(data(), cutting())[0]
    monkeypatch.setattr(packed, "_numbered", None)  # not called
    assert (packed.number(data(), cutting())[0] == first).all()


def test_chance_is_new_in_each_epoch_and_equal_in_each_run():
    def draws(epoch, seed=0):
        sequences = packed.Packed(*packed.number(data(), tokenizer()), tokenizer(), LENGTH, seed)
        sequences.set_epoch(epoch)
        return sequences.__getitems__([1, 2, 3])["draw"].tolist()

    assert draws(0) == draws(0) and len({*draws(0), *draws(1), *draws(0, seed=1)}) == 9


def test_too_little_text_for_one_sequence_is_refused():
    tokens, begins = packed.number(Dataset.from_dict({"text": ["the cat"]}), tokenizer())
    with pytest.raises(BadInput, match="3 tokens of text do not fill one sequence of 16; lower --max_seq_length"):
        packed.Packed(tokens, begins, tokenizer(), LENGTH)


TEXTS = [f"word{i * 7919 % 1000} Ünd etwas, (ok) 5€ {chr(97 + i % 26)}{chr(200 + i % 50)}\n" for i in range(2000)]


@pytest.mark.parametrize("train", [train_wordpiece, train_bpe])
def test_trained_tokenizers_are_equal_on_equal_text_and_load_again(train, tmp_path):
    from transformers import AutoTokenizer

    one, other = train(TEXTS, 700, 64), train(TEXTS, 700, 64)
    assert one.get_vocab() == other.get_vocab() and len(one) == 700
    one.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"word12 etwas {one.mask_token} 5€ neu"
    assert loaded(text) == one(text) and loaded.model_max_length == 64
    ids = one(text)["input_ids"]
    assert (ids[0], ids[-1]) == (one.cls_token_id, one.sep_token_id) and one.mask_token_id in ids
    assert one.unk_token_id not in one("Word7 ünd")["input_ids"]


def test_the_trained_wordpiece_numbers_its_letters_in_order():
    """The trainer's own order is random, and would differ between the processes of one run."""
    inner = [t for t, _ in sorted(train_wordpiece(TEXTS, 700, 64).get_vocab().items(), key=lambda item: item[1])]
    inner = [t for t in inner if t.startswith("##") and len(t) == 3]
    assert inner == sorted(inner) and len(inner) > 26
