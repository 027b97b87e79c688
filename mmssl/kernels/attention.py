"""Attention over short sequences on a CPU as plain matrix products, which are faster there than torch's fused kernel.

Speed relative to the fused kernel, forward and backward on two cores of a Zen 4 (benchmarks/attention.py): in bf16 6.6
at 17 tokens, 5.6 at 65, 3.4 at 128, 1.8 at 512, 0.9 at 1,024; in fp32 1.5 at 17, 1.0 at 32, 0.8 at 128. Relative to
torch's unfused kernel: 2.3 to 3.3 in bf16, 1.1 to 1.5 in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LONGEST_FP32 = 32  # keys up to which the matrix products are faster
LONGEST_BF16 = 512


@contextmanager
def fast_attention() -> Iterator[None]:
    """Inside, transformers' "sdpa" attention uses the faster of the two for each call."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before  # the previous one, so that blocks can be nested


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others,
) -> tuple[Tensor, None]:
    """query: (batch, heads, queries, width). key, value: (batch, heads, keys, width). attention_mask: broadcasts to
    (batch, 1, queries, keys), bool (False = not attended to) or float (added to the scores). Returns (batch, queries,
    heads, width).

    The interface is that of transformers' attention functions. Torch's kernel is used on other devices, for more keys,
    for heads that share keys, and for rare options.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    longest = LONGEST_BF16 if torch.is_autocast_enabled("cpu") else LONGEST_FP32
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = is_causal and attention_mask is None and query.shape[2] > 1
    if (
        query.device.type != "cpu"
        or key.shape[2] > longest
        or key.shape[1] != query.shape[1]
        or (causal and key.shape[2] != query.shape[2])
        or any(others.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    ):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **others)

    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.mT
    if causal:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attention_mask is not None:
        least = torch.finfo(scores.dtype).min  # not -inf: a row without any key (padding) would be NaN
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, least)
        else:
            scores = scores + attention_mask.to(scores.dtype).clamp(min=least)
    weights = nn.functional.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return (weights @ value).transpose(1, 2).contiguous(), None
