"""Test that an exported directory loads: its outputs in a new interpreter, which cannot import mmssl, are those of the
model in memory."""

from __future__ import annotations

import atexit
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmssl.hub import reload
from mmssl.models import remote_code

TOLERANCE = 1e-5  # largest difference of outputs after a reload, relative to the largest output
PATIENCE = 300  # seconds that an interpreter waits to be asked; it holds 400 MB


class NotLoadable(RuntimeError):
    """The exported directory does not load, or gives other outputs than the model in memory."""


@dataclass
class Exported:
    """A directory and the objects that were exported to it: the arguments of check_reload."""

    directory: Path
    model: torch.nn.Module
    processor: Any
    example: dict[str, Tensor | list[str]]
    auto_class: str = "AutoModel"


def check_reload(
    directory: Path,
    model: torch.nn.Module,
    processor,
    example: dict[str, Tensor | list[str]],
    auto_class: str = "AutoModel",
) -> None:
    """Load `directory` in a new interpreter that cannot import mmssl; every output must equal that of `model`.

    model, processor: those that were exported; not changed. example: a few raw inputs, under the processor's argument
    names. Code in the directory is run only if this process has run it too (see remote_code.has_run). Raises
    NotLoadable.
    """
    with Reload([Exported(directory, model, processor, example, auto_class)]) as test:
        test.raise_fault()


def reload_faults(exports: Sequence[Exported]) -> list[NotLoadable | None]:
    """check_reload for several directories in one new interpreter, because importing transformers takes seconds. None
    for a directory without a fault. If a directory crashes the interpreter, the next ones get a new one."""
    faults = []
    while len(faults) < len(exports):
        with Reload(exports[len(faults) :]) as test:
            faults += test.faults()
    return faults


class Interpreter:
    """A new Python process that runs reload.py: it imports transformers, then waits for what it is asked to load."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, "-c", Path(reload.__file__).read_text(), str(PATIENCE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(self.folder.name),
            cwd=self.folder.name,
            text=True,
        )

    def ask(self, jobs: list) -> None:
        """Send it the arguments of `reload.reload` for each directory."""
        with suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.write(json.dumps(jobs) + "\n")  # a line: a forked data worker may keep the pipe open
            self.process.stdin.flush()

    def listens(self) -> bool:
        """Whether it still waits. Half of its patience: it must not end while it is asked."""
        return self.process.poll() is None and time.monotonic() - self.began < PATIENCE / 2

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.folder.cleanup()


_early: dict[int, Interpreter] = {}  # by the process that started it: a fork must not use its parent's


def start_early() -> None:
    """Start the interpreter of this process's next Reload now: its seconds of imports pass beside those at the start of
    a run, which use one core. If the training takes minutes it ends, to free its memory, and Reload starts another."""
    if os.getpid() not in _early:
        _early[os.getpid()] = Interpreter()
        atexit.register(_end_early)


def _next() -> Interpreter:
    early = _early.pop(os.getpid(), None)
    if early and not early.listens():
        early.end()
        early = None
    return early or Interpreter()


def _end_early() -> None:
    if interpreter := _early.pop(os.getpid(), None):
        interpreter.end()


class Reload:
    """A new interpreter that loads directories and runs their examples, while this process goes on: `faults` waits for
    it. A context: the interpreter ends with it."""

    def __init__(self, exports: Sequence[Exported]) -> None:
        self.exports = exports
        # now, not while this process goes on: a tokenizer keeps the padding of the last call
        models = [copy.deepcopy(export.model).to("cpu", torch.float32).eval() for export in exports]
        self.expected = [reload.outputs(m, e.processor, e.example) for m, e in zip(models, exports, strict=True)]
        self.interpreter = _next()
        self.places = [Path(self.interpreter.folder.name, f"example_{i}") for i in range(len(exports))]
        jobs = []
        for export, own in zip(exports, self.places, strict=True):
            own.mkdir()
            tensors = {name: value.contiguous() for name, value in export.example.items() if torch.is_tensor(value)}
            save_file(tensors, own / reload.TENSORS)
            texts = {name: value for name, value in export.example.items() if name not in tensors}
            (own / reload.EXAMPLE).write_text(json.dumps(texts))
            code = sorted(remote_code.has_run(export.directory, export.model, export.processor))
            classes = [export.auto_class, _auto_class(export.processor)]
            jobs.append([str(export.directory.resolve()), *classes, code, str(own)])
        self.interpreter.ask(jobs)

    def __enter__(self) -> Reload:
        return self

    def __exit__(self, *error) -> None:
        self.interpreter.end()

    def faults(self) -> list[NotLoadable | None]:
        """None for a directory without a fault; up to and including the first that crashes the interpreter."""
        status, faults = self.interpreter.process.wait(), []
        for export, wanted, own in zip(self.exports, self.expected, self.places, strict=True):
            if (own / reload.OUTPUTS).exists():
                faults.append(_difference(export.directory, wanted, load_file(own / reload.OUTPUTS)))
                continue
            crashed = not (own / reload.ERROR).exists()  # for example killed for memory
            cause = f"exit code {status}" if crashed else (own / reload.ERROR).read_text()
            faults.append(NotLoadable(f"{export.directory} was written but does not load: {cause}"))
            if crashed:
                break
        return faults

    def raise_fault(self) -> None:
        """Raises the first NotLoadable, if there is one."""
        for fault in self.faults():
            if fault:
                raise fault


def _difference(directory: Path, expected: dict[str, Tensor], reloaded: dict[str, Tensor]) -> NotLoadable | None:
    if not expected:
        return NotLoadable(f"{directory}: the model returns no tensor to compare")
    for name, value in expected.items():
        if name not in reloaded or reloaded[name].shape != value.shape:
            return NotLoadable(f"{directory} loads as another model: {name} is missing or of another shape")
        error = (reloaded[name].float() - value.float()).abs().max().item()
        if not error <= TOLERANCE * max(1.0, value.abs().max().item()):
            return NotLoadable(f"{directory} loads, but {name} differs by {error:.2g} from the trained model's")
    return None


def _auto_class(processor) -> str:
    """The class that users load the processor with. For a feature extractor alone this is not AutoProcessor, which
    expects a Wav2Vec2 model to have a tokenizer too."""
    from transformers import FeatureExtractionMixin, ImageProcessingMixin, PreTrainedTokenizerBase, ProcessorMixin

    kinds = {ProcessorMixin: "AutoProcessor", PreTrainedTokenizerBase: "AutoTokenizer"}
    kinds |= {ImageProcessingMixin: "AutoImageProcessor", FeatureExtractionMixin: "AutoFeatureExtractor"}
    return next(name for kind, name in kinds.items() if isinstance(processor, kind))


def _environment(place: str) -> dict[str, str]:
    """Environment of a process that does not belong to a launched group, sees no GPU, does not use the Hub, and keeps
    its code cache in `place`."""
    launched = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "MASTER_", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launched)}
    return kept | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": place}
