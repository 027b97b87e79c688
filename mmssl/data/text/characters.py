"""Text as one sequence of characters or bytes: the tokenizer, and the streams of chunks for recurrent networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from datasets import Dataset as Documents
    from transformers import PreTrainedTokenizerFast


BETWEEN_DOCUMENTS = "\n\n"
CODE_POINTS = 0x110000
UNKNOWN, PADDING = "<unk>", "<pad>"  # the last two tokens of a vocabulary
MOST_UNKNOWN = 0.05  # fraction of a text's characters that a loaded model's vocabulary may lack
UNITS = {"characters": "character", "bytes": "byte"}


def join(documents: Documents) -> str:
    """All texts as one string, with a blank line between them. documents: with a column "text"."""
    return BETWEEN_DOCUMENTS.join(documents["text"])


def tokenizer(text: str, vocabulary: str) -> PreTrainedTokenizerFast:
    """vocabulary "characters": one token for each character that occurs in `text`, in code point order. "bytes": one
    token for each of the 256 bytes, which cover any UTF-8 text."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if vocabulary == "bytes":
        letters = [letter for _, letter in sorted(bytes_to_unicode().items())]
        table = Tokenizer(models.BPE({token: i for i, token in enumerate([*letters, UNKNOWN, PADDING])}, merges=[]))
        table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        table.decoder = decoders.ByteLevel()
    else:
        known = {token: i for i, token in enumerate([*sorted(set(text)), UNKNOWN, PADDING])}
        table = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
        table.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        table.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=table,
        unk_token=UNKNOWN,
        pad_token=PADDING,
        padding_side="left",  # for generation
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "<pad>" in a text is five characters, not padding
        model_input_names=["input_ids", "attention_mask"],
    )


def encode(text: str, tokenizer: PreTrainedTokenizerFast, vocabulary: str) -> np.ndarray:
    """(symbols,) of the smallest unsigned type: the ids that `tokenizer` gives, a hundred times as fast."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    known = tokenizer.get_vocab()
    kind = np.min_scalar_type(len(known))
    if vocabulary == "bytes":
        table = np.array([known[letter] for _, letter in sorted(bytes_to_unicode().items())], kind)
        return table[np.frombuffer(text.encode(), np.uint8)]
    table = np.full(CODE_POINTS, tokenizer.unk_token_id, kind)
    for token, i in known.items():
        if len(token) == 1:
            table[ord(token)] = i
    return table[np.frombuffer(text.encode("utf-32-le"), np.uint32)]


class Streams(Dataset):
    """A text cut into `streams` strips of equal length that are read in parallel, one chunk of each at a time.

    Item i is the next chunk of stream i % streams, so a batch of all streams continues the previous batch. The text is
    treated as a ring, and every epoch starts at another position in it. The end of a strip is dropped if it does not
    fill a chunk.

    ids: (symbols,) integers. chunk: symbols between two updates. forget: fraction of the chunks, drawn from seed, epoch
    and item, before which the recurrent state of the stream is reset.
    """

    def __init__(self, ids: np.ndarray, streams: int, chunk: int, forget: float = 0.0, seed: int = 0) -> None:
        self.ids, self.streams, self.chunk, self.forget, self.seed = ids, streams, chunk, forget, seed
        self.strip = len(ids) // streams
        if self.strip < chunk:
            raise BadInput(
                f"the training text has {len(ids):,} symbols, too few for {streams} streams of --chunk_length {chunk}; "
                "lower that or --per_device_train_batch_size"
            )
        self.set_epoch(0)

    def __len__(self) -> int:
        return self.strip // self.chunk * self.streams

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.start = int(draws.draw(torch.tensor(0), self.seed, epoch)) % len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([i]).items()}

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """input_ids: (rows, chunk + 1) int64; the last symbol is the first of the next chunk. stream, index: (rows,)
        int64. fresh: (rows,) bool, True = reset the stream's state."""
        rows = np.asarray(rows)
        stream = rows % self.streams
        begin = self.start + stream * self.strip + rows // self.streams * self.chunk
        at = (begin[:, None] + np.arange(self.chunk + 1)) % len(self.ids)
        index = torch.from_numpy(rows)
        return {
            "input_ids": torch.from_numpy(self.ids[at].astype(np.int64)),
            "stream": torch.from_numpy(stream),
            "fresh": draws.share(index + 1, self.seed, self.epoch) < self.forget,  # the draw of 0 is the start position
            "index": index,
        }


def refuse_unknown(ids: np.ndarray, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Raises BadInput if the vocabulary of `name` lacks more than MOST_UNKNOWN of the characters."""
    unknown = float((ids == tokenizer.unk_token_id).mean())
    if unknown > MOST_UNKNOWN:
        raise BadInput(f"{name}: its vocabulary lacks {unknown:.0%} of the text's characters; train a new model")
