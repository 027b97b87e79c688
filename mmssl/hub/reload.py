"""What a user of an exported directory does: raw examples through its processor and its model.

Imports nothing of mmssl. `export.check_reload` runs this file as a program in a fresh interpreter, where mmssl cannot
be imported, and compares what comes out with what the same function gives in the process that trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

EXAMPLE, TENSORS, OUTPUTS = "example.json", "example.safetensors", "outputs.safetensors"


def outputs(model: torch.nn.Module, processor, example: dict[str, Tensor | list[str]]) -> dict[str, Tensor]:
    """Every tensor that `model` gives for `example`, which is what the processor takes: texts; images, waveforms (a row
    each)."""
    raw = {name: list(value.numpy()) if torch.is_tensor(value) else value for name, value in example.items()}
    encoded = processor(**raw, return_tensors="pt", **({"padding": True} if "text" in raw else {}))
    with torch.no_grad():
        return {name: value.clone() for name, value in model(**encoded).items() if torch.is_tensor(value)}


def run_only(digests: list[str]) -> None:
    """From here on transformers imports a file that came with a model only where its sha256 is one of `digests`."""
    from transformers import dynamic_module_utils as dynamic

    class_in_module = dynamic.get_class_in_module

    def checked(class_name: str, module_path: str, **options) -> type:
        file = os.path.join(dynamic.HF_MODULES_CACHE, module_path)
        for source in (file, *dynamic.get_relative_import_files(file)):
            with open(source, "rb") as f:
                if hashlib.sha256(f.read()).hexdigest() not in digests:
                    raise ImportError(f"{os.path.basename(source)} is not the code that trained this model; not run")
        return class_in_module(class_name, module_path, **options)

    dynamic.get_class_in_module = checked


def main(directory: str, auto_class: str, auto_processor: str, code: str, place: str) -> None:
    """code: sha256 of each file of code that may run, joined by commas; "" where none may."""
    sys.modules["mmssl"] = None  # as on a machine where it is not installed
    sys.modules["sklearn"] = None  # transformers imports it where it can, for nothing needed here: a second saved
    import transformers

    run_only(code.split(","))
    trust = {"trust_remote_code": bool(code)}
    auto = getattr(transformers, auto_class)
    model = auto.from_pretrained(directory, dtype=torch.float32, use_safetensors=True, **trust).eval()
    processor = getattr(transformers, auto_processor).from_pretrained(directory, **trust)
    with open(os.path.join(place, EXAMPLE)) as f:
        example = json.load(f) | load_file(os.path.join(place, TENSORS))
    save_file(
        {name: value.contiguous() for name, value in outputs(model, processor, example).items()},
        os.path.join(place, OUTPUTS),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
