"""Code that comes with a checkpoint: find references to it, keep them out of exports, and recognise code that has run.

A config.json names classes in `auto_map`, as "module.Class", or as "user/repository--module.Class" on the Hub. With
trust_remote_code, transformers imports them. Configs of tokenizers and processors can do the same. Built-in
architectures load without that code, but the key stays in the object, and `save_pretrained` would write it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import transformers  # its classes are imported on first use

from mmssl import bounded_json
from mmssl.durable import sha256

KEYS = ("auto_map", "custom_pipelines", "custom_generate")


def is_ours(model_type) -> bool:
    """True for an architecture of mmssl.models: it is always built from our class, never from a copy in a directory."""
    from mmssl.models import own

    return model_type in [config.model_type for config in own.ARCHITECTURES]


def add_own(directory: Path) -> None:
    """Write the file that defines an architecture of mmssl beside its weights, and name it in config.json, so that Auto
    classes load it without mmssl. Other architectures need none."""
    from mmssl.models import own

    file = directory / "config.json"
    content = bounded_json.read(file)
    for config, models in own.ARCHITECTURES.items():
        if config.model_type == content.get("model_type"):
            code = Path(sys.modules[config.__module__].__file__)
            shutil.copyfile(code, directory / code.name)
            classes = {"AutoConfig": config} | models
            content["auto_map"] = {name: f"{code.stem}.{kind.__name__}" for name, kind in classes.items()}
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def trusting(code: str) -> str:
    """A snippet that loads a model named `name`, with the argument that lets its own code run."""
    loads = r"(Auto(?:Model\w*|Tokenizer)\.from_pretrained\(name|pipeline\([^()]*model=name)(?!, trust_remote_code)"
    return re.sub(loads, r"\1, trust_remote_code=True", code)


def named(folder: Path) -> list[str]:
    """["config.json: evil.Model", ...]: the code that the JSON files of a checkpoint name, except mmssl's own
    architectures."""
    found = []
    for file in _configs(folder):
        content = bounded_json.read(file)
        kind = content.get("model_type") if isinstance(content, dict) else None
        ours = transformers.CONFIG_MAPPING[kind].__module__.rpartition(".")[2] if is_ours(kind) else None
        found += [f"{file.name}: {name}" for name in _references(content) if name.partition(".")[0] != ours]
    return list(dict.fromkeys(found))


def drop(model: transformers.PreTrainedModel | None, processor) -> None:
    """Remove references to the checkpoint's code, so that `save_pretrained` does not write them."""
    parts = (
        [] if model is None else [part for part in model.modules() if isinstance(part, transformers.PreTrainedModel)]
    )
    for part in parts:
        _drop(part.config)
        _drop(part.generation_config if part.can_generate() else None)
    _drop(processor)


def has_run(directory: Path, model: transformers.PreTrainedModel, processor) -> set[str]:
    """sha256 of each code file that may run when `directory` is loaded again; empty if it names no such code.

    These are the files of mmssl's own architectures, those that define `model` and `processor`, and those that
    transformers has imported from checkpoints into this process, which it does only with --trust_remote_code. They are
    compared by content: a file name or a key in a config is no reason to trust a file.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    from mmssl.models import own

    wanted = {name.partition(".")[0] for file in _configs(directory) for name in _references(bounded_json.read(file))}
    of_objects = {type(o).__module__ for o in (model, getattr(model, "config", None), processor)}
    imported = {name for name in sys.modules if name.startswith("transformers_modules.")}
    files = {Path(sys.modules[config.__module__].__file__) for config in own.ARCHITECTURES}
    for name in (of_objects | imported) - {"__main__"}:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and not name.startswith("transformers."):
            files |= {Path(file), *map(Path, get_relative_import_files(file))}
    known = {sha256(file) for file in files if file.is_file()}
    here = (directory / f"{module}.py" for module in wanted)
    found = any(file.is_file() and sha256(file) in known for file in here)
    return known if found or (imported and any("--" in module for module in wanted)) else set()


def _configs(folder: Path) -> list[Path]:
    """The JSON files in `folder`, without the largest ones, which do not name code."""
    return [file for file in sorted(folder.glob("*.json")) if file.name not in ("tokenizer.json", "vocab.json")]


def _references(content) -> list[str]:
    """All strings "module.Class" under any of KEYS, at any depth."""
    if isinstance(content, list):
        return [name for value in content for name in _references(value)]
    if not isinstance(content, dict):
        return []
    mine = [name for key in KEYS for name in _strings(content.get(key)) if "." in name]
    return mine + [name for key, value in content.items() if key not in KEYS for name in _references(value)]


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for part in parts for name in _strings(part)]


def _drop(value) -> None:
    if isinstance(value, transformers.PreTrainedTokenizerBase):  # skip its other attributes: one is the vocabulary
        value._auto_map = None
        return _drop(value.init_kwargs)
    written = (  # classes whose attributes save_pretrained writes
        transformers.PreTrainedConfig, transformers.GenerationConfig, transformers.ImageProcessingMixin,
        transformers.FeatureExtractionMixin, transformers.ProcessorMixin,
    )  # fmt: skip
    if isinstance(value, written):
        return _drop(vars(value))
    if isinstance(value, dict):
        for key in KEYS:
            if isinstance(value.get(key), (str, dict, list, tuple)):  # a number belongs to a label or a token
                del value[key]
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        _drop(part)
