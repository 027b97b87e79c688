"""Dropout is set wherever a class of transformers keeps it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BioGptConfig, GPT2Config, GPTNeoXConfig, OPTConfig, XGLMConfig

from mmssl.models.dropout import set_dropout

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
XGLM = {"vocab_size": 20, "d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 16}
CONFIGS = {
    "gpt2": GPT2Config(**SIZES),
    "opt": OPTConfig(**SIZES, ffn_dim=16, word_embed_proj_dim=16),
    "xglm": XGLMConfig(**XGLM),
    "biogpt": BioGptConfig(**SIZES, intermediate_size=16),
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=16, attention_dropout=0.1),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_two_passes_in_training_are_equal_without_dropout_and_differ_with_it(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).train()
    ids = torch.arange(12)[None]
    for probability in (0.0, 0.5):
        set_dropout(model, probability)
        assert torch.equal(model(ids).logits, model(ids).logits) == (probability == 0)
