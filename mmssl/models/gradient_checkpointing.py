"""--gradient_checkpointing: activations are computed again in the backward pass, which saves memory and takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmssl.errors import BadInput

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def check(model: PreTrainedModel) -> None:
    """Raises BadInput if the model cannot do it."""
    if not model.supports_gradient_checkpointing:
        raise BadInput(
            f"--gradient_checkpointing has no effect with a {type(model).__name__}: leave it out, or use a "
            "transformer, such as --encoder vit-small"
        )


def enable(method: nn.Module) -> None:
    """In every model of the method that can do it. Raises BadInput if none can."""
    from transformers import PreTrainedModel

    models = [module for module in method.modules() if isinstance(module, PreTrainedModel)]
    able = [model for model in models if model.supports_gradient_checkpointing]
    if not able:
        kinds = dict.fromkeys(type(model).__name__ for model in models)
        raise BadInput(f"--gradient_checkpointing has no effect with a {' and a '.join(kinds)}: leave it out")
    for model in able:
        model.gradient_checkpointing_enable()
