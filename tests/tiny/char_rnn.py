from __future__ import annotations

from functools import partial

import torch

from mmssl.data.text import characters
from mmssl.evaluation.language_model import entropy
from mmssl.methods import char_rnn
from tiny import Tiny

TEXT = "".join(f"{name} has {number} {thing}s.\n" for name in ("Ann", "Bo", "Cy") for number in range(9)
               for thing in ("cat", "dog", "pen", "hat"))  # fmt: skip
STREAMS, CHUNK = 8, 16


def model(vocabulary: str = "characters", **sizes):
    """(model, tokenizer)"""
    torch.manual_seed(0)
    tokenizer = characters.tokenizer(TEXT, vocabulary)
    sizes = {"embedding_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "vocabulary": vocabulary} | sizes
    return char_rnn.from_scratch(tokenizer, **sizes), tokenizer


def tiny(vocabulary: str, **sizes) -> Tiny:
    network, tokenizer = model(vocabulary, **sizes)
    ids = characters.encode(TEXT, tokenizer, vocabulary)
    return Tiny(
        char_rnn.CharRNN(network, STREAMS, entropy(ids)),
        characters.Streams(ids, STREAMS, CHUNK, forget=0.2),
        batch_size=STREAMS,
        shuffle=False,
        processor=tokenizer,
        example={"text": ["Ann has 3", "Bo"]},
        auto_class="AutoModelForCausalLM",
    )


VARIANTS = {
    "lstm": partial(tiny, "characters"),
    "gru_of_bytes_tied": partial(tiny, "bytes", cell="gru", tie_word_embeddings=True),
}
