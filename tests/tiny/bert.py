from __future__ import annotations

from functools import partial

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, ModernBertConfig, ModernBertForMaskedLM

from mmssl.data.text.packed import Packed
from mmssl.methods.bert import BERT
from tiny import Tiny

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "and", "then", "it", "slept"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"##{word}" for word in WORDS)]
LENGTH = 16


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={token: i for i, token in enumerate(VOCABULARY)}, model_max_length=LENGTH)


def model(architecture: str = "bert"):
    """The architecture with dropout as it comes."""
    torch.manual_seed(0)
    given = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    given |= {"intermediate_size": 48, "max_position_embeddings": LENGTH, "pad_token_id": 0}
    if architecture == "bert":
        return BertForMaskedLM(BertConfig(**given))
    return ModernBertForMaskedLM(
        ModernBertConfig(local_attention=8, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, **given)
    )


def packed(n: int = 24) -> Packed:
    """n sequences of random words, a document's end here and there."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, len(VOCABULARY), n * (LENGTH - 2)).astype(np.int32)
    tokens[rng.random(len(tokens)) < 0.05] = 3
    return Packed(tokens, tokens < 5 + len(WORDS), tokenizer(), LENGTH)


def tiny(architecture: str, **options) -> Tiny:
    method = BERT(model(architecture), tokenizer(), **options)
    example = {"text": ["the cat [MASK] on a mat", "a dog"]}
    return Tiny(method, packed(), 8, processor=tokenizer(), example=example, auto_class="AutoModelForMaskedLM")


VARIANTS = {
    "bert": partial(tiny, "bert"),
    "modernbert": partial(tiny, "modernbert", share=0.3, unit="words", cross_documents=False),
}
