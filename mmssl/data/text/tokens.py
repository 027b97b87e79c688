"""Tokenizers trained on the user's text, and batches padded to their longest text."""

from __future__ import annotations

import json
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from mmssl.data import draws
from mmssl.data.text.pieces import OF_A_TOKEN, portions, to_train_on
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train_clip_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int = 77) -> PreTrainedTokenizerBase:
    """CLIP's byte-pair encoding (lower-cased, words end in </w>) trained on `texts`; equal texts give equal ids.

    As in CLIP's own tokenizer, every byte is a token, and so is every byte with </w>, so that nothing is unknown. (The
    unknown token is the end of text, where CLIP pools: it would cut the text off.) The bytes with </w> are given to the
    trainer in order: it would find them in random order, and each process or resumed run would number them differently.
    """
    from transformers import CLIPTokenizer

    ends = sorted(letter + "</w>" for letter in ByteLevel.alphabet())
    trained = CLIPTokenizer().train_new_from_iterator(
        to_train_on(texts), vocab_size, new_special_tokens=ends, show_progress=False
    )
    learned = json.loads(trained.backend_tokenizer.to_str())["model"]
    # rebuilt from its parts: the letters must be ordinary tokens, not special ones
    tokenizer = CLIPTokenizer(vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]])
    tokenizer.model_max_length = max_length
    return tokenizer


SPECIAL = {
    name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
}
ALPHABET = 1000  # most frequent characters; BERT's limit


def train_wordpiece(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """BERT's WordPiece (lower-cased, accents dropped) trained on `texts`, which is read twice; equal texts give equal
    ids.

    The letters inside a word (##a) are given to the trainer in order: it would number them in random order, and their
    numbers decide between equally frequent pairs.
    """
    from transformers import BertTokenizer

    backend = BertTokenizer(model_max_length=max_length).backend_tokenizer
    letters: Counter[str] = Counter()
    for text in to_train_on(texts):
        letters.update(backend.normalizer.normalize_str(text))
    usual = sorted((c for c in letters if not c.isspace()), key=lambda c: (-letters[c], c))[:ALPHABET]
    inner = sorted(f"##{c}" for c in usual if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *inner],
        initial_alphabet=usual,
        limit_alphabet=len(usual),
        show_progress=False,
    )
    backend.train_from_iterator(to_train_on(texts), trainer)
    _check_size(backend, vocab_size)
    # rebuilt from its vocabulary: the letters must be ordinary tokens, not special ones
    return BertTokenizer(vocab=json.loads(backend.to_str())["model"]["vocab"], model_max_length=max_length)


def train_bpe(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Byte-level byte-pair encoding (case and every byte kept, nothing unknown) trained on `texts`, with BERT's special
    tokens around a text; equal texts give equal ids."""
    from transformers import PreTrainedTokenizerFast

    # lstrip: the mask token includes the space before it, as a token of the text does
    special = [AddedToken(t, special=True, lstrip=t == SPECIAL["mask_token"]) for t in SPECIAL.values()]
    backend = _train_byte_level(texts, vocab_size, special)
    first, last = SPECIAL["cls_token"], SPECIAL["sep_token"]
    backend.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (first, last)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **SPECIAL | {"mask_token": special[-1]},
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"


def train_causal_bpe(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Byte-level byte-pair encoding as in `train_bpe`, with GPT-2's one special token, which begins and ends a document
    and is not added to a text. Padding has a token of its own: if it were the end of text, fine-tuning would take the
    end for padding and not learn it. Texts are padded on the left, as `generate` needs it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_train_byte_level(texts, vocab_size, [END_OF_TEXT, PADDING]),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        padding_side="left",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _train_byte_level(texts: Iterable[str], vocab_size: int, special: list[str | AddedToken]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(to_train_on(texts), trainer)
    _check_size(backend, vocab_size)
    return backend


def _check_size(backend: Tokenizer, vocab_size: int) -> None:
    """The trainers may exceed the size they were given by letters and special tokens. Raises BadInput if they did."""
    if backend.get_vocab_size() > vocab_size:
        raise BadInput(
            f"--vocab_size {vocab_size} is too small: the letters of this text and the special tokens alone are "
            f"{backend.get_vocab_size()}; use at least twice that"
        )


class Tokens:
    """Many texts as one flat array of ids: a fraction of the memory of Python lists, and shared by workers.

    A text longer than max_length is cut, but keeps its last token (the end of text, where CLIP pools).
    """

    AT_ONCE = 10_000  # texts tokenised at a time, because a tokenizer's output is large

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        ids, words, lengths = [torch.empty(0, dtype=torch.int32)], [torch.empty(0, dtype=torch.int32)], [0]
        beginnings = (text[: OF_A_TOKEN * max_length] for text in texts)  # all of 1 MB is encoded before it is cut
        for some in portions(beginnings, self.AT_ONCE):
            encoded = tokenizer(some, truncation=True, max_length=max_length)
            ids.append(torch.tensor([token for text in encoded["input_ids"] for token in text], dtype=torch.int32))
            if encoded.is_fast:
                of_words = [-1 if word is None else word for i in range(len(some)) for word in encoded.word_ids(i)]
                words.append(torch.tensor(of_words, dtype=torch.int32))
            else:  # a tokenizer in Python (ByT5) does not tell words apart
                words.append(torch.full_like(ids[-1], -1))
            lengths += map(len, encoded["input_ids"])
        self.ids, self.words = torch.cat(ids), torch.cat(words)  # words: the word that each token belongs to; -1: none
        self.starts = torch.tensor(lengths).cumsum(0)
        self.pad, self.max_length = tokenizer.pad_token_id, max_length

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        """input_ids, attention_mask: (rows, longest of them)."""
        return self.altered(rows, 0.0, 0.0, None, seed=0, epoch=0)

    def altered(
        self,
        rows: Tensor,
        dropped: float,
        garbled: float,
        pieces: Tensor | None,
        seed: int,
        epoch: int,
        key: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The same, with about the fraction `dropped` of the words left out, never all of a text, and the fraction
        `garbled` replaced by one to three of `pieces`: this is how the tokenizer splits words that it has never seen.
        rows: (n,) int64. key: (n,) int64, of which the draws for a text are a function; default: its row."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        text = torch.repeat_interleave(torch.arange(len(rows)), lengths)  # of each token
        place = torch.arange(len(text)) + (self.starts[rows] - lengths.cumsum(0) + lengths)[text]
        ids = self.ids[place].long()
        if dropped + garbled > 0:
            word = self.words[place].long()
            drawn = draws.share(word + 1_000 * (rows if key is None else key)[text], seed, epoch)
            garble = (dropped <= drawn) & (drawn < dropped + garbled) & (word >= 0)
            whole = torch.zeros(len(rows)).index_add_(0, text, ((drawn >= dropped + garbled) & (word >= 0)).float())
            garble &= whole[text] > 0  # a text must keep at least one unaltered word
            keep = (drawn >= dropped) | (word < 0) | (whole[text] == 0)
            has_room = (3 * lengths <= self.max_length)[text]
            at = place if key is None else place - self.starts[rows][text] + 1_000 * key[text]  # of this text alone
            times = keep * torch.where(garble & has_room, 1 + draws.draw(at, seed, epoch) % 3, 1)
            number = torch.arange(int(times.sum())) - (times.cumsum(0) - times).repeat_interleave(times)
            text, at, ids, garble = (x.repeat_interleave(times) for x in (text, at, ids, garble))
            if garble.any():
                ids = torch.where(garble, pieces[draws.draw(3 * at + number, ~seed, epoch) % len(pieces)], ids)
            lengths = torch.bincount(text, minlength=len(rows))
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = torch.full(mask.shape, self.pad)
        padded[mask] = ids  # row by row, as the tokens lie
        return {"input_ids": padded, "attention_mask": mask.long()}


def side_by_side(texts: Sequence[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Join several texts per row, (rows, tokens) each, into input_ids, attention_mask: (rows, texts, longest)."""
    longest = max(text["input_ids"].shape[1] for text in texts)
    fill = {"input_ids": pad, "attention_mask": 0}
    return {
        name: torch.stack([F.pad(text[name], (0, longest - text[name].shape[1]), value=value) for text in texts], 1)
        for name, value in fill.items()
    }


def inner_pieces(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(n,) int64: ids of the tokens that do not end a word, in a tokenizer of `train_clip_tokenizer`. Words that it has
    never seen consist mostly of them."""
    special = set(tokenizer.all_special_tokens)
    return torch.tensor(
        sorted(i for t, i in tokenizer.get_vocab().items() if not t.endswith("</w>") and t not in special)
    )
