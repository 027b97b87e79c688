"""Reading back: a checkpoint from a directory or the Hub, whole and of one piece, or a sentence on what is wrong.

Weights come from safetensors only, never from a pickle. Code that lies beside them runs only where the caller says so.
"""

from __future__ import annotations

import json

import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase

from mmssl.errors import BadInput


def load(
    name: str,
    trust_remote_code: bool = False,
    may_lack: str = "",
    auto_class: type = AutoModel,
    flag: str = "--model_name_or_path",
) -> tuple[PreTrainedModel, object]:
    """(model, processor) of `name`, a directory or a Hub id; fp32. may_lack: a part that need not be there ("pooler").
    auto_class: what to load it with. flag: what named it.

    Raises BadInput where a file is missing or damaged, where the weights are not those that config.json describes, and
    where the tokenizer has no vocabulary: transformers would fill such gaps with random weights and empty vocabularies.
    """
    flag, trust = f"{flag} {name}", {"trust_remote_code": trust_remote_code}
    try:
        model, report = auto_class.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **trust,
        )
        processor = _processor(name, trust)
    except Exception as error:  # whatever a damaged file can raise
        said = str(error).splitlines()[0] if str(error) else ""
        if "trust_remote_code" in str(error):
            said = "it comes with code of its own; read that code, then add --trust_remote_code to run it"
        if "safetensors" in type(error).__module__:
            said = f"model.safetensors is cut off or damaged ({said}); copy or download it again"
        if isinstance(error, json.JSONDecodeError):
            said = f"one of its JSON files is cut off or damaged ({said}); copy or download it again"
        raise BadInput(f"{flag}: {said or type(error).__name__}") from error
    missing = {key for key in report["missing_keys"] if may_lack not in key.split(".")}
    wrong = sorted({*missing, *(key for key, *_ in report["mismatched_keys"])})
    if wrong:
        raise BadInput(
            f"{flag}: its weights are not those of the {type(model).__name__} that its config.json describes: "
            f"{len(wrong)} are missing or of another shape, {wrong[0]} first"
        )
    tokenizer = getattr(processor, "tokenizer", processor)
    if isinstance(tokenizer, PreTrainedTokenizerBase) and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise BadInput(f"{flag}: its tokenizer has no vocabulary; is tokenizer.json missing?")
    return model, processor


def _processor(name: str, trust: dict[str, bool]):
    try:
        return AutoProcessor.from_pretrained(name, **trust)
    except (OSError, ValueError, TypeError):
        try:  # AutoProcessor misses a feature extractor alone: a Wav2Vec2 model's has a tokenizer too
            return AutoFeatureExtractor.from_pretrained(name, **trust)
        except Exception:  # not that either: the first message is the better one
            pass
        raise
