"""The dropout of a model of transformers, in both forms that its classes keep it in."""

from __future__ import annotations

from torch import nn


def set_dropout(model: nn.Module, probability: float) -> None:
    """Of all dropout modules, and of the numbers that other modules keep for `nn.functional.dropout` (OPT's `dropout`,
    GPT-NeoX's `attention_dropout`). The config keeps its usual values."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name, value in vars(module).items():
            if "dropout" in name and type(value) in (int, float):  # not ESM's token_dropout, a bool
                setattr(module, name, probability)
