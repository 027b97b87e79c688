"""Loads an exported directory as a user would, and runs raw examples through its processor and model.

Imports nothing from mmssl. hub/reloading.py runs this file as a program in a new interpreter, where mmssl cannot be
imported, and compares its outputs with those of the same function in the training process. Standard input: the
arguments of `reload` for each directory, as a line of JSON. Its one argument: the seconds that it waits for them.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import select
import sys
import traceback

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

EXAMPLE, TENSORS = "example.json", "example.safetensors"
OUTPUTS, ERROR = "outputs.safetensors", "error.txt"  # one of them is written for each directory


def outputs(model: torch.nn.Module, processor, example: dict[str, Tensor | list[str]]) -> dict[str, Tensor]:
    """Every tensor that `model` returns for `example`, the processor's inputs: texts, images or waveforms (one per
    row)."""
    raw = {name: list(value.numpy()) if torch.is_tensor(value) else value for name, value in example.items()}
    encoded = processor(**raw, return_tensors="pt", **({"padding": True} if "text" in raw else {}))
    with torch.no_grad():
        return {name: value.clone() for name, value in model(**encoded).items() if torch.is_tensor(value)}


def run_only() -> set[str]:
    """From now on transformers imports code that came with a model only if its sha256 is in the returned set."""
    from transformers import dynamic_module_utils as dynamic

    class_in_module, digests = dynamic.get_class_in_module, set()

    def checked(class_name: str, module_path: str, **options) -> type:
        file = os.path.join(dynamic.HF_MODULES_CACHE, module_path)
        for source in (file, *dynamic.get_relative_import_files(file)):
            with open(source, "rb") as f:
                if hashlib.sha256(f.read()).hexdigest() not in digests:
                    raise ImportError(f"{os.path.basename(source)} is not the code that trained this model; not run")
        return class_in_module(class_name, module_path, **options)

    dynamic.get_class_in_module = checked
    return digests


def reload(directory: str, auto_class: str, auto_processor: str, code: list[str], place: str) -> None:
    """Read the example from `place`, and write the outputs, or the last line of the error, to `place`. code: sha256 of
    each code file that may run; if empty, the directory must load without code."""
    import transformers

    trust = {"trust_remote_code": bool(code)}
    try:
        auto = getattr(transformers, auto_class)
        model = auto.from_pretrained(directory, dtype=torch.float32, use_safetensors=True, **trust).eval()
        processor = getattr(transformers, auto_processor).from_pretrained(directory, **trust)
        with open(os.path.join(place, EXAMPLE)) as f:
            example = json.load(f) | load_file(os.path.join(place, TENSORS))
        given = {name: value.contiguous() for name, value in outputs(model, processor, example).items()}
        save_file(given, os.path.join(place, OUTPUTS))
    except Exception as error:
        with open(os.path.join(place, ERROR), "w") as f:
            f.write("".join(traceback.format_exception_only(error)).strip().splitlines()[-1])


def main() -> None:
    gc.disable()  # it would look again and again at the million objects that importing transformers makes
    sys.modules["mmssl"] = None  # as on a machine where it is not installed
    sys.modules["sklearn"] = None  # transformers would import it, without need: saves a second
    may_run = run_only()
    from transformers import AutoModel, AutoProcessor, PreTrainedModel  # noqa: F401

    if not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:
        return
    for directory, auto_class, auto_processor, code, place in json.loads(sys.stdin.readline()):
        may_run.clear()
        may_run.update(code)
        reload(directory, auto_class, auto_processor, code, place)
    gc.freeze()  # nor at exit


if __name__ == "__main__":
    main()
