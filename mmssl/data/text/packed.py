"""Documents tokenised once into one flat array of tokens on disk, and cut into sequences without padding.

Documents follow each other with a separator between them, as in RoBERTa's FULL-SENTENCES (arXiv:1907.11692, section
4.2) and in GPT-2; every sequence is full. The array is memory-mapped, so that it may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws, shards, sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.text.documents import each
from mmssl.data.text.in_place import Texts
from mmssl.data.text.pieces import PIECE, pieces, portions
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


FORMAT = 1  # version of the files on disk
AT_ONCE = 256  # documents, or pieces of them, tokenised at a time
MOST_UNKNOWN = 0.2  # fraction of a text's tokens that may be unknown to a loaded tokenizer

Batch = dict[str, Tensor]
Around = tuple[list[int], list[int]]  # tokens before and after each document


class Packed(Dataset):
    """Sequence i is the i-th segment of the tokens, between the two tokens that the tokenizer puts around a text.

    tokens: (n,) int32. begins_word: (n,) bool. Both as `number` gives them.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        begins_word: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        seed: int = 0,
    ) -> None:
        """length: tokens of a sequence, including the two around it. Raises BadInput if there is not one full one."""
        self.tokens, self.begins_word, self.length, self.seed, self.epoch = tokens, begins_word, length, seed, 0
        self.first, self.last = tokenizer.cls_token_id, tokenizer.sep_token_id
        if len(self) == 0:
            raise BadInput(f"{len(tokens)} tokens of text do not fill one sequence of {length}; lower --max_seq_length")

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens) // (self.length - 2)

    def __getitems__(self, rows: list[int]) -> Batch:
        """input_ids: (rows, length) int64. begins_word: the same shape, bool. draw: (rows,) int64, from which all
        random choices for this sequence in this epoch are derived. index: (rows,)."""
        ids = np.empty((len(rows), self.length), np.int64)
        begins = np.ones((len(rows), self.length), bool)
        for i, row in enumerate(rows):
            ids[i, 1:-1], begins[i, 1:-1] = self._inside(row)
        begins[:, 1] = True  # the rest of a word that was cut counts as a word
        ids[:, 0], ids[:, -1] = self.first, self.last
        index = torch.tensor(rows)
        drawn = draws.draw(index, self.seed, self.epoch)
        return {
            "input_ids": torch.from_numpy(ids),
            "begins_word": torch.from_numpy(begins),
            "draw": drawn,
            "index": index,
        }

    def _inside(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, begins_word) between the two around them."""
        inside = slice(row * (self.length - 2), (row + 1) * (self.length - 2))
        return self.tokens[inside], self.begins_word[inside]


class InPlace(Dataset):
    """Sequences of documents that are tokenised when they are used.

    A block of so many bytes has so many sequences, which begin at equal distances in it, elsewhere in each epoch. Where
    a sequence's tokens are longer than most, it runs into the next one; where they are shorter, some text between the
    two is not seen in that epoch. A sequence is thus a function of (seed, epoch, row), as an image of shards is, and
    an epoch goes through blocks as it does there.
    """

    def _cut(
        self, texts: Texts, of_a_token: float, tokenizer: PreTrainedTokenizerBase, length: int, around: Around
    ) -> None:
        """of_a_token: bytes of text, on average. length: tokens that a sequence takes of the text. around: see
        `number`. Raises BadInput if there is not one full sequence."""
        self.texts, self.tokenizer, self.around = texts, tokenizer, around
        self.bytes = of_a_token * length
        self.count = (texts.size / self.bytes).round().astype(np.int64)
        self.begin = np.concatenate([[0], self.count.cumsum()])
        if not len(self):
            raise BadInput(
                f"blocks of {texts.size.max():,} bytes of text do not fill one sequence of {self.length} tokens; lower "
                "--max_seq_length"
            )
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.phase = float(draws.share(torch.tensor(0), self.seed, epoch))

    def order(self, seed: int) -> shards.Order:
        return shards.Rows(self.begin[:-1], self.count, self.texts.size).order(seed)

    def __len__(self) -> int:
        return int(self.begin[-1])

    def _read(self, row: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, begins_word), the first `length` from the beginning of sequence `row` on."""
        before, after = map(len, self.around)
        number = int(np.searchsorted(self.begin, row, side="right")) - 1
        place = (row - self.begin[number] + self.phase) / self.count[number]
        for _ in range(len(self.count)):
            if len((block := self.texts.blocks[number]).spans):
                break
            number = (number + 1) % len(self.count)  # it is blank, or was held out
        start, size = block.at(place), int(1.2 * self.bytes) + 64
        while True:
            tokens, begins = _joined(block.from_(start, size), self.tokenizer, self.around)
            # the first document may begin in its middle, the last one may be cut
            inside = slice(before if start[1] else 0, len(tokens) - after)
            if inside.stop - inside.start >= length:
                return tokens[inside][:length], begins[inside][:length]
            size *= 2


class PackedInPlace(InPlace, Packed):
    """The batches of `Packed`."""

    def __init__(
        self, texts: Texts, of_a_token: float, tokenizer: PreTrainedTokenizerBase, length: int, seed: int = 0
    ) -> None:
        """of_a_token: bytes of text, on average. length: as in `Packed`."""
        self.length, self.seed = length, seed
        self.first, self.last = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._cut(texts, of_a_token, tokenizer, length - 2, separated(tokenizer))

    def _inside(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self._read(row, self.length - 2)


class NextTokens(Dataset):
    """Sequences for a causal language model: each token is in one of them, to be predicted from those before it.

    The tokens are a circle that is cut into full sequences, at other places in each epoch. The tokens after the last
    full sequence, fewer than `length`, are left out in that epoch.

    tokens: (n,) int32, as `number` gives them.
    """

    def __init__(self, tokens: np.ndarray, length: int, seed: int = 0) -> None:
        """Raises BadInput if there is not one full sequence."""
        self.tokens, self.length, self.seed = tokens, length, seed
        if len(tokens) < length:
            raise BadInput(f"{len(tokens)} tokens of text do not fill one sequence of {length}; lower --max_seq_length")
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.first = int(draws.draw(torch.tensor(0), self.seed, epoch)) % len(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitems__(self, rows: list[int]) -> Batch:
        """targets: (rows, length) int64, the tokens of each sequence. input_ids: the same shape, the token before each
        target. index: (rows,)."""
        ids = torch.from_numpy(self._ids(rows).astype(np.int64))
        return {
            "input_ids": ids[:, :-1].contiguous(),
            "targets": ids[:, 1:].contiguous(),
            "index": torch.tensor(rows),
        }

    def _ids(self, rows: list[int]) -> np.ndarray:
        """(rows, 1 + length): the tokens of each sequence, and the one before."""
        at = self.first + np.array(rows)[:, None] * self.length + np.arange(-1, self.length)
        return self.tokens[at % len(self.tokens)]


class NextTokensInPlace(InPlace, NextTokens):
    """The batches of `NextTokens`."""

    def __init__(
        self,
        texts: Texts,
        of_a_token: float,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        around: Around,
        seed: int = 0,
    ) -> None:
        """of_a_token: bytes of text, on average. around: see `number`."""
        self.length, self.seed = length, seed
        self._cut(texts, of_a_token, tokenizer, length, around)

    def _ids(self, rows: list[int]) -> np.ndarray:
        return np.stack([self._read(row, 1 + self.length)[0] for row in rows])


def separated(tokenizer: PreTrainedTokenizerBase) -> Around:
    """The separator after each document."""
    return [], [tokenizer.sep_token_id]


def number(
    data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, around: Around | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, begins_word) of all documents: (n,) int32 and (n,) bool, from disk if they were tokenised before.

    data: one column, "text". around: tokens before and after each document; default: the separator after it. Raises
    BadInput if the tokenizer gives no tokens.
    """
    around = around or separated(tokenizer)
    tokenizer.backend_tokenizer.no_truncation()  # both are part of the key
    tokenizer.backend_tokenizer.no_padding()
    key = json.dumps([data._fingerprint, tokenizer.backend_tokenizer.to_str(), around, FORMAT])

    def write(directory: Path) -> None:
        with (
            whole(directory) as place,
            open(place / "tokens", "wb") as tokens,
            open(place / "begins_word", "wb") as begins_word,
        ):
            for ids, begins in _numbered(data, tokenizer, around):
                tokens.write(ids.astype(np.int32).data)
                begins_word.write(begins.data)

    directory = once(sources.home() / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:24], write)
    with reading(directory):
        if (directory / "tokens").stat().st_size == 0:
            raise BadInput("the text holds no tokens: the tokenizer drops every character of it")
        tokens = np.memmap(directory / "tokens", np.int32, "r")
        begins_word = np.memmap(directory / "begins_word", bool, "r")
        if len(tokens) != len(begins_word):
            raise ValueError(f"tokens holds {len(tokens):,}, begins_word {len(begins_word):,}")
    return tokens, begins_word


def train_and_held_out(
    train: datasets.Dataset | Texts,
    held_out: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    seed: int = 0,
) -> tuple[Packed, Packed, np.ndarray]:
    """(the sequences of the training data, those of the held-out data, how often each token occurs). Of texts that are
    read where they lie, the tokens of the held-out data are counted."""
    test = Packed(*number(held_out, tokenizer), tokenizer, length)
    if isinstance(train, Texts):
        training = PackedInPlace(train, _bytes_of_a_token(held_out, test.tokens), tokenizer, length, seed)
        return training, test, counts(test.tokens, len(tokenizer))
    tokens, begins_word = number(train, tokenizer)
    training = Packed(tokens, begins_word, tokenizer, length, seed)
    return training, test, counts(tokens, len(tokenizer))


def next_tokens(
    train: datasets.Dataset | Texts,
    some: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    around: Around,
    seed: int = 0,
) -> tuple[NextTokens, np.ndarray]:
    """(the sequences of the training data, the tokens of `some`). some: of the training data, see documents.some.
    around: see `number`."""
    tokens, _ = number(some, tokenizer, around)
    if isinstance(train, Texts):
        of_a_token = _bytes_of_a_token(some, tokens)
        return NextTokensInPlace(train, of_a_token, tokenizer, length, around, seed), tokens
    return NextTokens(tokens, length, seed), tokens


def _bytes_of_a_token(data: datasets.Dataset, tokens: np.ndarray) -> float:
    return sum(len(text.encode()) for text in each(data)) / len(tokens)


def counts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """(vocab_size,) int64: how often each token occurs."""
    parts = (tokens[i : i + (1 << 24)] for i in range(0, len(tokens), 1 << 24))
    return sum((np.bincount(part, minlength=vocab_size) for part in parts), np.zeros(vocab_size, np.int64))


def _numbered(
    data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, around: Around
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for texts in portions(each(data), AT_ONCE):
        yield _joined(texts, tokenizer, around)


def _joined(texts: list[str], tokenizer: PreTrainedTokenizerBase, around: Around) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, begins_word) of a list of documents. around: see `number`."""
    before, after = (np.array(ids, np.int32) for ids in around)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    cut = [list(pieces(text, PIECE)) for text in texts]
    some = portions((piece for text in cut for piece in text), AT_ONCE)
    encoded = (encoding for portion in some for encoding in backend.encode_batch(portion, add_special_tokens=False))
    ids, words = [], []
    for text in cut:
        ids.append(before)
        words.append(np.ones(len(before), bool))
        for _ in text:
            encoding = next(encoded)
            ids.append(np.array(encoding.ids, np.int32))
            word = np.array([-1 if w is None else w for w in encoding.word_ids], np.int32)
            words.append(np.diff(word, prepend=-2) != 0)
        ids.append(after)
        words.append(np.ones(len(after), bool))
    return np.concatenate(ids), np.concatenate(words)


def refuse_unknown(counts: np.ndarray, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises BadInput if more than MOST_UNKNOWN of the tokens are unknown to the tokenizer of `name`."""
    if tokenizer.unk_token_id is not None and (unknown := counts[tokenizer.unk_token_id] / counts.sum()) > MOST_UNKNOWN:
        raise BadInput(
            f"{name}: {unknown:.0%} of the text's tokens are unknown to its tokenizer; train a new one on the text"
        )
