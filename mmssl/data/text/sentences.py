"""Documents as sequences of sentences, and sentences as words, for predictive coding; and single sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws
from mmssl.data.text.pieces import LONGEST_RUN, OF_A_TOKEN, pieces, portions
from mmssl.data.text.tokens import Tokens
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# after . ! ? and closing quotes, before a character that can begin a sentence; and at line ends and <br>
END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[^\W_a-z])|\s*(?:\n|<br\s*/?>)+\s*")
WORD = re.compile(r"\w")
BLANKS = re.compile(r"[^\S\n]{2,}")
AT_ONCE = 10_000  # sentences


def split(text: str) -> list[str]:
    """The sentences of a text, by its punctuation. Those without a letter or digit are left out."""
    text = BLANKS.sub(" ", text)  # END looks for a line end from each blank of a run: a minute for 30,000 of them
    return [sentence.strip() for sentence in END.split(text) if sentence and WORD.search(sentence)]


def of_each(texts: Iterable[str], fewest_words: int, whole: bool = False) -> list[list[str]]:
    """The sentences of each text that have at least `fewest_words` words, on one line each. whole: a text is one."""
    parts = ([text] if whole else split(text) for text in texts)
    return [[s for s in (" ".join(part.split()) for part in some) if s.count(" ") + 1 >= fewest_words]
            for some in parts]  # fmt: skip


def vocabulary(texts: Iterable[str], size: int, min_count: int) -> list[str]:
    """The most frequent words: lower-cased letters and digits, cut as by `word_vectors.tokenizer`; none of more than
    LONGEST_RUN characters."""
    counts: Counter[str] = Counter()
    for text in texts:
        for piece in pieces(text):
            words = re.sub(r"[\W_]+", " ", piece.lower()).split()
            counts.update(word for word in words if len(word) <= LONGEST_RUN)
    return [word for word, count in counts.most_common(size) if count >= min_count]


class Sentences(Dataset):
    """Single sentences, padded to the longest of a batch and cut to `max_length` tokens, special ones included."""

    def __init__(
        self, sentences: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int = 0
    ) -> None:
        self.tokens, self.seed, self.epoch = Tokens(sentences, tokenizer, max_length), seed, 0

    def __len__(self) -> int:
        return len(self.tokens)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """input_ids, attention_mask: (rows, longest of them). key: (rows,) int64, from which all random choices for
        this sentence in this epoch are derived. index: (rows,)."""
        index = torch.tensor(rows)
        return self.tokens[index] | {"key": draws.draw(index, self.seed, self.epoch), "index": index}


class Documents(Dataset):
    """Segments of `sentences` consecutive sentences of a document, at random positions drawn again each epoch.

    A document of n sentences gives n // sentences segments, at least one. Documents of fewer than `fewest` sentences
    are left out and counted in `too_short`. max_words: sentences are cut to this many words. seed: None cuts a document
    into consecutive segments, the same in every epoch.
    """

    def __init__(
        self,
        texts: Iterable[str],
        tokenizer: PreTrainedTokenizerBase,
        sentences: int,
        fewest: int,
        max_words: int = 50,
        seed: int | None = None,
    ) -> None:
        """Raises BadInput if no document is long enough."""
        self.sentences, self.seed, self.epoch, self.pad = sentences, seed, 0, tokenizer.pad_token_id
        ids, lengths, counts, self.too_short = [], [], [], 0
        for document in _tokenised(texts, tokenizer, max_words):
            if len(document) < fewest:
                self.too_short += 1
                continue
            counts.append(len(document))
            lengths += map(len, document)
            ids += [torch.tensor([i for sentence in document for i in sentence], dtype=torch.int32)]
        if not counts:
            raise BadInput(f"no document of {fewest} sentences or more: lower --prediction_steps, or cut texts less")
        self.ids = torch.cat(ids)
        self.ends = torch.tensor([0, *lengths]).cumsum(0)  # sentence i ends at ends[i + 1]
        self.counts = torch.tensor(counts)
        self.first = self.counts.cumsum(0) - self.counts  # (documents,) the first sentence of each
        often = (self.counts // sentences).clamp(min=1)
        self.segments = torch.repeat_interleave(torch.arange(len(counts)), often)  # (segments,) the document of each
        self.number = torch.arange(len(self.segments)) - (often.cumsum(0) - often)[self.segments]  # within the document

    def __len__(self) -> int:
        return len(self.segments)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitems__(self, places: list[int]) -> dict[str, Tensor]:
        """input_ids, attention_mask: (batch, sentences, longest of their sentences). lengths: (batch,), sentences
        without padding. index: (batch,)."""
        places = torch.tensor(places)
        documents = self.segments[places]
        spare = (self.counts[documents] - self.sentences).clamp(min=0)
        if self.seed is None:
            skipped = self.number[places] * self.sentences
        else:
            skipped = (draws.share(places, self.seed, self.epoch) * (spare + 1)).long()
        first = self.first[documents] + skipped
        lengths = self.counts[documents].clamp(max=self.sentences)
        step = torch.arange(self.sentences)
        exists = step < lengths[:, None]
        sentence = (first[:, None] + step).clamp(max=len(self.ends) - 2)
        words = (self.ends[sentence + 1] - self.ends[sentence]) * exists
        place = torch.arange(int(words.max()))
        mask = place < words[..., None]
        input_ids = torch.full(mask.shape, self.pad)
        input_ids[mask] = self.ids[(self.ends[sentence][..., None] + place)[mask]].long()
        return {"input_ids": input_ids, "attention_mask": mask.long(), "lengths": lengths, "index": documents}


def _tokenised(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, max_words: int) -> Iterator[list[list[int]]]:
    """The sentences of each text as ids, without empty ones."""
    for text in texts:
        found = (sentence[: OF_A_TOKEN * max_words] for sentence in split(text))
        encoded = (tokenizer(some, truncation=True, max_length=max_words) for some in portions(found, AT_ONCE))
        yield [sentence for some in encoded for sentence in some["input_ids"] if sentence]
