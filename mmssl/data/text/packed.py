"""Documents as one flat run of tokens, numbered once and kept on disk, cut into sequences without padding.

A document follows the other with the separator between them, as RoBERTa's FULL-SENTENCES (arXiv:1907.11692, section
4.2); every sequence is full. The run is memory-mapped: it may be larger than memory.
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

from mmssl.data import draws, sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.text.documents import each
from mmssl.data.text.pieces import PIECE, pieces, portions
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


FORMAT = 1  # of the files on disk
AT_ONCE = 256  # documents, or pieces of them
MOST_UNKNOWN = 0.2  # of the tokens of a text, to a tokenizer that was not trained on it

Batch = dict[str, Tensor]


class Packed(Dataset):
    """Sequence i is the i-th stretch of the run, between the two tokens that the model's tokenizer puts around a text.

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
        """length: tokens of a sequence, the two around it among them. Raises BadInput where not one is full."""
        self.tokens, self.begins_word, self.length, self.seed, self.epoch = tokens, begins_word, length, seed, 0
        self.first, self.last = tokenizer.cls_token_id, tokenizer.sep_token_id
        if len(self) == 0:
            raise BadInput(f"{len(tokens)} tokens of text: not one sequence of {length}; lower --max_seq_length")

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens) // (self.length - 2)

    def __getitems__(self, rows: list[int]) -> Batch:
        """input_ids: (rows, length) int64. begins_word: the same shape, bool. draw: (rows,) int64, the number that all
        chance of this sequence in this epoch begins with. index: (rows,)."""
        inside = self.length - 2
        ids = np.empty((len(rows), self.length), np.int64)
        begins = np.ones((len(rows), self.length), bool)
        for i, row in enumerate(rows):
            ids[i, 1:-1] = self.tokens[row * inside : (row + 1) * inside]
            begins[i, 1:-1] = self.begins_word[row * inside : (row + 1) * inside]
        begins[:, 1] = True  # a word that the cut goes through begins anew
        ids[:, 0], ids[:, -1] = self.first, self.last
        index = torch.tensor(rows)
        drawn = draws.draw(index, self.seed, self.epoch)
        return {
            "input_ids": torch.from_numpy(ids),
            "begins_word": torch.from_numpy(begins),
            "draw": drawn,
            "index": index,
        }


def number(data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, begins_word) of all documents, from disk where they have been numbered before.

    data: one column, "text". Raises BadInput where the tokenizer numbers nothing.
    """
    key = json.dumps([data._fingerprint, tokenizer.backend_tokenizer.to_str(), FORMAT])

    def write(directory: Path) -> None:
        with (
            whole(directory) as place,
            open(place / "tokens", "wb") as tokens,
            open(place / "begins_word", "wb") as begins_word,
        ):
            for ids, begins in _numbered(data, tokenizer):
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


def stream(data: datasets.IterableDataset, tokenizer: PreTrainedTokenizerBase, length: int) -> datasets.IterableDataset:
    """The same sequences as they come, to be collated with `collate`; what is left of a thousand documents is less than
    one of them, and dropped."""

    def pack(rows: dict[str, list[str]]) -> dict[str, list]:
        tokens, begins = _joined([text for text in rows["text"] if text], tokenizer)
        n, inside = len(tokens) // (length - 2), length - 2
        parts = (part[: n * inside].reshape(n, inside) for part in (tokens, begins))
        return dict(zip(("tokens", "begins_word"), parts, strict=True))

    return data.map(pack, batched=True, batch_size=1000, remove_columns=["text"])


class Collate:
    """Rows of `stream` -> the batches of `Packed`. Chance comes from torch's generator, which the loader seeds."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.first, self.last = tokenizer.cls_token_id, tokenizer.sep_token_id

    def __call__(self, rows: list[dict]) -> Batch:
        ids = torch.tensor(np.stack([row["tokens"] for row in rows]), dtype=torch.int64)
        begins = torch.tensor(np.stack([row["begins_word"] for row in rows]), dtype=torch.bool)
        begins[:, 0] = True
        ids = torch.nn.functional.pad(torch.nn.functional.pad(ids, (1, 0), value=self.first), (0, 1), value=self.last)
        begins = torch.nn.functional.pad(begins, (1, 1), value=True)
        return {"input_ids": ids, "begins_word": begins, "draw": torch.randint(1 << 32, (len(rows),))}


def counts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """(vocab_size,) int64: how often each token occurs."""
    parts = (tokens[i : i + (1 << 24)] for i in range(0, len(tokens), 1 << 24))
    return sum((np.bincount(part, minlength=vocab_size) for part in parts), np.zeros(vocab_size, np.int64))


def _numbered(data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for texts in portions(each(data), AT_ONCE):
        yield _joined(texts, tokenizer)


def _joined(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, begins_word) of some documents, the separator after each."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    cut = [list(pieces(text, PIECE)) for text in texts]
    some = portions((piece for text in cut for piece in text), AT_ONCE)
    encoded = (encoding for portion in some for encoding in backend.encode_batch(portion, add_special_tokens=False))
    ids, words = [], []
    for text in cut:
        for _ in text:
            encoding = next(encoded)
            ids.append(np.array(encoding.ids, np.int32))
            word = np.array([-1 if w is None else w for w in encoding.word_ids], np.int32)
            words.append(np.diff(word, prepend=-2) != 0)
        ids.append(np.array([tokenizer.sep_token_id], np.int32))
        words.append(np.array([True]))
    return np.concatenate(ids), np.concatenate(words)


def refuse_unknown(counts: np.ndarray, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises BadInput where the tokenizer of `name` does not know more than MOST_UNKNOWN of the text."""
    if tokenizer.unk_token_id is not None and (unknown := counts[tokenizer.unk_token_id] / counts.sum()) > MOST_UNKNOWN:
        raise BadInput(f"{name}: its tokenizer does not know {unknown:.0%} of the text; train one on the text instead")
