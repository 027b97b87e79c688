import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from mmssl.data.text import characters
from mmssl.data.text.characters import Streams
from mmssl.errors import BadInput

TEXT = "To be, or not\nto be: ö <pad> 語"
IDS = np.arange(1000, dtype=np.uint16)


@pytest.mark.parametrize("vocabulary", ["characters", "bytes"])
def test_the_tokenizer_that_is_saved_gives_the_ids_that_training_sees_and_the_text_back(vocabulary, tmp_path):
    tokenizer = characters.tokenizer(TEXT, vocabulary)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = characters.encode(TEXT, tokenizer, vocabulary).tolist()
    assert loaded(TEXT)["input_ids"] == ids and loaded.decode(ids) == TEXT
    assert len(ids) == len(TEXT if vocabulary == "characters" else TEXT.encode())


def test_a_character_that_the_training_text_lacks_is_unknown_and_a_byte_never():
    seen = characters.tokenizer("abc", "characters")
    assert characters.encode("aéz", seen, "characters").tolist() == [0, 3, 3] == seen("aéz")["input_ids"]
    assert seen.unk_token_id == 3 and seen.pad_token_id == 4
    every = characters.tokenizer("abc", "bytes")
    assert every.unk_token_id not in characters.encode("aéz", every, "bytes")


def test_prompts_are_padded_on_the_left():
    padded = characters.tokenizer("abc", "characters")(["abc", "a"], padding=True)
    assert padded["attention_mask"] == [[1, 1, 1], [0, 0, 1]] and padded["input_ids"][1] == [4, 4, 0]


def test_each_batch_of_all_streams_continues_the_one_before_it():
    streams = Streams(IDS, streams=4, chunk=30)
    batches = [streams.__getitems__(list(range(i, i + 4)))["input_ids"] for i in range(0, len(streams), 4)]
    assert len(batches) == 8
    for one, following in zip(batches, batches[1:], strict=False):
        assert torch.equal(one[:, -1], following[:, 0])
    read = torch.cat([batch[:, :-1] for batch in batches]).flatten()
    assert len(read.unique()) == len(read) == 960, "no symbol twice"
    assert all(((batch[:, 1:] - batch[:, :-1]) % 1000 == 1).all() for batch in batches), "in the order of the text"


def test_another_epoch_begins_elsewhere_and_the_same_one_in_the_same_place():
    streams = Streams(IDS, streams=4, chunk=30, forget=0.5)
    first = streams.__getitems__(list(range(32)))
    streams.set_epoch(1)
    second = streams.__getitems__(list(range(32)))
    streams.set_epoch(0)
    again = streams.__getitems__(list(range(32)))
    for name in ("input_ids", "fresh"):
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], second[name])


def test_about_the_asked_share_of_chunks_begins_anew():
    streams = Streams(np.zeros(40_000, np.uint8), streams=4, chunk=10, forget=0.05)
    fresh = streams.__getitems__(list(range(len(streams))))["fresh"]
    assert 0.03 < fresh.float().mean() < 0.07
    assert not Streams(IDS, streams=4, chunk=30).__getitems__([0, 1, 2])["fresh"].any()


def test_too_little_text_is_refused_with_the_numbers():
    with pytest.raises(BadInput, match="1,000 symbols, too few for 32 streams of --chunk_length 64; lower that or"):
        Streams(IDS, streams=32, chunk=64)
