from __future__ import annotations

from functools import cache, partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mmssl.data.text import packed
from mmssl.data.text.tokens import train_causal_bpe
from mmssl.methods import causal_lm
from tiny import Tiny

TEXTS = [f"{name} has {number} {thing}s." for name in ("Ann", "Bo", "Cy") for number in range(9)
         for thing in ("cat", "dog", "pen", "hat")]  # fmt: skip
LENGTH = 16


@cache
def tokenizer():
    return train_causal_bpe(TEXTS, 280, LENGTH)


def model(architecture: str):
    torch.manual_seed(0)
    given = {"vocab_size": len(tokenizer()), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    given |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "max_position_embeddings": LENGTH}
    given |= {"tie_word_embeddings": True}
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(intermediate_size=48, **given))
    return GPT2LMHeadModel(GPT2Config(**given))


def tokens():
    return packed._joined(TEXTS, tokenizer(), causal_lm.around(tokenizer()))[0]


def tiny(architecture: str, **options) -> Tiny:
    method = causal_lm.CausalLM(model(architecture), tokenizer(), unigram_loss=4.0, **options)
    example = {"text": ["Ann has 3", "Bo"]}
    data = packed.NextTokens(tokens(), LENGTH)
    return Tiny(method, data, 8, processor=tokenizer(), example=example, auto_class="AutoModelForCausalLM")


VARIANTS = {"gpt2": partial(tiny, "gpt2"), "llama": partial(tiny, "llama")}
