"""Documents cut into sentences, sentences into words, stretches of them into batches."""

from __future__ import annotations

import pytest
import torch

from mmssl.data.loader import Loader
from mmssl.data.text.sentences import Documents, split, vocabulary
from mmssl.errors import BadInput
from mmssl.models.word_vectors import tokenizer

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()


def document(first: int, n: int) -> str:
    """n sentences, "One one. Two two. ..." from number `first` on."""
    return " ".join(f"{NUMBERS[i].capitalize()} {NUMBERS[i]}." for i in range(first, first + n))


def documents(*texts: str, **changes) -> Documents:
    return Documents(texts, tokenizer(NUMBERS, plain=True), **({"sentences": 4, "fewest": 2} | changes))


def read(data: Documents, places: list[int]) -> list[list[int]]:
    """The number that each sentence of each stretch says; -1 where there is none."""
    batch, first = data.__getitems__(places), tokenizer(NUMBERS, plain=True)(["zero"])["input_ids"][0][0]
    ids, there = batch["input_ids"][..., 0] - first, batch["attention_mask"].any(-1)
    return torch.where(there, ids, -1).tolist()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("We came. We saw! Did we win? Yes.", ["We came.", "We saw!", "Did we win?", "Yes."]),
        ('"Go," he said. "Now!" She went.', ['"Go," he said.', '"Now!', "She went."]),
        ("It costs 3.50 today. 20 came.", ["It costs 3.50 today.", "20 came."]),
        ("A title\n\nA line\nanother", ["A title", "A line", "another"]),
        ("Great film.<br /><br />Watch it.", ["Great film.", "Watch it."]),
        ("wait... what? ok", ["wait... what? ok"]),
        ("One. --- ... Two.", ["One. --- ...", "Two."]),
        ("*** \n --- \n .", []),
        ("", []),
        ("   \n\t", []),
        ("no punctuation at all", ["no punctuation at all"]),
        ("Ein Satz. Über alles.", ["Ein Satz.", "Über alles."]),
    ],
)
def test_a_text_is_cut_behind_its_sentences_and_at_line_ends(text, sentences):
    assert split(text) == sentences


def test_the_vocabulary_is_the_most_frequent_words_that_occur_often_enough():
    texts = ["The cat, the dog; the_bird!", "the cat 42 dog", "THE end"]
    assert vocabulary(texts, size=100, min_count=2) == ["the", "cat", "dog"]
    assert vocabulary(texts, size=2, min_count=1) == ["the", "cat"]
    assert set(vocabulary(texts, size=100, min_count=1)) == {"the", "cat", "dog", "bird", "42", "end"}


def test_a_stretch_is_sentences_that_follow_each_other_in_one_document():
    data = documents(document(0, 9), document(9, 6), seed=0)
    for epoch in range(5):
        data.set_epoch(epoch)
        for stretch in read(data, list(range(len(data)))):
            assert stretch == list(range(stretch[0], stretch[0] + 4))
            assert stretch[-1] < 9 or stretch[0] >= 9


def test_every_place_of_a_document_is_cut_at_some_time_and_a_longer_one_more_often():
    data = documents(document(0, 9), document(9, 4), seed=0)
    assert data.segments.tolist() == [0, 0, 1]
    begun = set()
    for epoch in range(50):
        data.set_epoch(epoch)
        begun |= {stretch[0] for stretch in read(data, [0, 1])}
    assert begun == {0, 1, 2, 3, 4, 5}


def test_stretches_repeat_by_seed_and_epoch():
    def cut(seed: int, epoch: int) -> list[list[int]]:
        data = documents(*[document(0, 16)] * 8, seed=seed)
        data.set_epoch(epoch)
        return read(data, list(range(len(data))))

    assert cut(0, 0) == cut(0, 0) and cut(0, 0) != cut(0, 1) and cut(0, 0) != cut(1, 0)


def test_without_a_seed_a_document_is_cut_one_after_the_other():
    data = documents(document(0, 9), document(9, 5))
    assert read(data, list(range(len(data)))) == [[0, 1, 2, 3], [4, 5, 6, 7], [9, 10, 11, 12]]


def test_a_document_of_fewer_sentences_is_padded_and_one_of_too_few_left_out_and_counted():
    data = documents(document(0, 3), document(5, 1), "", " \n ", "... !", document(9, 4))
    batch = data.__getitems__([0, 1])
    assert data.too_short == 4 and data.counts.tolist() == [3, 4]
    assert read(data, [0, 1]) == [[0, 1, 2, -1], [9, 10, 11, 12]]
    assert batch["lengths"].tolist() == [3, 4] and not batch["attention_mask"][0, 3].any()


def test_sentences_are_cut_at_max_words_and_padded_to_the_longest_of_their_batch():
    data = documents("One. Two three four five. Six.", max_words=3)
    batch = data.__getitems__([0])
    assert batch["attention_mask"][0].tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == data.pad).all()


def test_a_word_that_is_not_known_is_still_a_word():
    words = tokenizer(NUMBERS, plain=True)
    data = documents("One unheard two. Three.")
    ids = data.__getitems__([0])["input_ids"][0, 0]
    assert ids.tolist() == words(["one unheard two"])["input_ids"][0] and ids[1] == words.unk_token_id


def test_no_document_that_is_long_enough_is_refused():
    with pytest.raises(BadInput, match="no document of 5 sentences or more: lower --prediction_steps"):
        documents(document(0, 4), "", fewest=5)


def test_workers_give_the_batches_that_one_process_gives():
    data = documents(*[document(i, 9) for i in range(6)], seed=0)
    alone, workers = (list(Loader(data, 4, num_workers=n).epoch(2)) for n in (0, 2))
    assert len(alone) == 3
    assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, workers, strict=True) for name in a)
