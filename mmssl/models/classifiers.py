"""A classifier of transformers around any encoder: the encoder's weights and a new head."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.errors import BadInput, first_line
from mmssl.models import image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO_CLASSES = {
    "image": "AutoModelForImageClassification",
    "text": "AutoModelForSequenceClassification",
    "audio": "AutoModelForAudioClassification",
}


def around(encoder: PreTrainedModel, modality: str, names: list[str]) -> PreTrainedModel:
    """The class that AUTO_CLASSES loads for this encoder. names: of the classes. Raises BadInput if transformers has no
    such class, or if the encoder has no place in it."""
    import transformers

    from mmssl.models.patch_encoder import exact_on_one_pixel

    config = copy.deepcopy(encoder.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    kind, auto_class = type(encoder).__name__, AUTO_CLASSES[modality]
    try:
        model = getattr(transformers, auto_class).from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(
            f"a {kind} is no part of any {auto_class} ({first_line(error)}); choose another encoder"
        ) from error
    report = model.base_model.load_state_dict(encoder.state_dict(), strict=False)
    if lacking := [name for name in report.missing_keys if "pooler" not in name.split(".")]:
        raise BadInput(f"a {kind} has no {lacking[0]}, which a {type(model).__name__} needs; choose another encoder")
    if modality != "image":
        return model
    convolutional = any(isinstance(part, nn.Conv2d) for part in model.modules()) and not image_encoders.patch_size(
        model
    )
    model = model.to(memory_format=torch.channels_last) if convolutional else model
    return exact_on_one_pixel(model)


def head(model: PreTrainedModel) -> nn.Linear:
    """The last linear layer with as many outputs as there are classes. Raises BadInput if there is none."""
    found = [
        each for each in model.modules() if isinstance(each, nn.Linear) and each.out_features == model.config.num_labels
    ]
    if not found:
        raise BadInput(f"a {type(model).__name__} has no linear head; choose another encoder")
    return found[-1]


def features_and_logits(model: PreTrainedModel, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, width), the input of the head; (batch, classes). Raises BadInput if the head is not applied once for each
    example."""
    seen = []
    hook = head(model).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0].ndim != 2:
        raise BadInput(f"the head of a {type(model).__name__} does not get one vector for each example; choose another")
    return seen[0], logits
