from __future__ import annotations

from functools import partial

import torch

from mmssl.data.text.sentences import Sentences
from mmssl.methods.simcse import SimCSE
from tiny import Tiny, bert


def sentences(n: int = 24) -> list[str]:
    """Of different lengths, so that batches have padding."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, len(bert.WORDS), (n, 10), generator=generator).tolist()
    return [" ".join(bert.WORDS[w] for w in words[: 3 + i % 8]) for i, words in enumerate(drawn)]


def encoder(architecture: str = "bert"):
    model = bert.model(architecture).base_model
    if architecture == "modernbert":  # without dropout as it comes, unlike BERT
        return model
    model.pooler = None
    return model


def tiny(architecture: str, **options) -> Tiny:
    model = encoder(architecture)
    method = SimCSE(model, bert.LENGTH, **options)
    data = Sentences(sentences(), bert.tokenizer(), bert.LENGTH)
    return Tiny(method, data, 8, processor=bert.tokenizer(), example={"text": ["the cat sat", "a dog"]})


VARIANTS = {
    "bert": partial(tiny, "bert", dropout=0.2),
    "modernbert": partial(tiny, "modernbert", dropout=0.2, pooling="cls"),
}
