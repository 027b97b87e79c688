from __future__ import annotations

from functools import partial

import torch
from transformers import ElectraConfig, ElectraForPreTraining

from mmssl.methods.electra import ELECTRA
from tiny import Tiny, bert
from tiny.bert import LENGTH, VOCABULARY, packed, tokenizer


def model(embedding_size: int = 32) -> ElectraForPreTraining:
    """A discriminator with dropout as it comes."""
    torch.manual_seed(0)
    given = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    given |= {"vocab_size": len(VOCABULARY), "embedding_size": embedding_size, "max_position_embeddings": LENGTH}
    return ElectraForPreTraining(ElectraConfig(**given, pad_token_id=0))


def tiny(embedding_size: int = 32, **options) -> Tiny:
    method = ELECTRA(model(embedding_size), tokenizer(), unigram_loss=3.0, **options)
    example = {"text": ["the cat sat on a mat", "a dog"]}
    return Tiny(method, packed(), 8, processor=tokenizer(), example=example, auto_class="AutoModelForPreTraining")


def bare() -> Tiny:
    method = ELECTRA(bert.model("modernbert").model, tokenizer(), unigram_loss=3.0)
    example = {"text": ["the cat sat on a mat", "a dog"]}
    return Tiny(method, packed(), 8, processor=tokenizer(), example=example)


VARIANTS = {
    "electra": tiny,
    "modernbert": bare,
    "words": partial(tiny, 8, share=0.3, unit="words", cross_documents=False),
}
