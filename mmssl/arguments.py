"""The flags that every recipe shares, and how a recipe becomes a command.

Names and defaults are those of `transformers.TrainingArguments` wherever it has one.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from transformers import HfArgumentParser

from mmssl.errors import BadInput

TRACKERS = ("tensorboard", "trackio", "wandb")


def flag(default, help: str, choices: tuple | None = None):
    """A dataclass field with its help text."""
    metadata = {"help": help} | ({"choices": list(choices)} if choices else {})
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Flags:
    """What the dataclass of any command can do."""

    def refuse(self, names: tuple[str, ...], because: str) -> None:
        """Raise BadInput where one of these flags is not at its default, and so would be ignored in silence."""
        changed = [f"--{f.name}" for f in fields(self) if f.name in names and getattr(self, f.name) != _default(f)]
        if changed:
            raise BadInput(f"{', '.join(changed)} {'has' if len(changed) == 1 else 'have'} no effect with {because}")


@dataclass
class TrainArgs(Flags):
    output_dir: str = flag("runs/out", "where the encoder, log, figures and checkpoints go")
    overwrite_output_dir: bool = flag(False, "delete what an earlier run left in output_dir")
    max_steps: int = flag(-1, "optimizer steps; above 0 it overrides num_train_epochs")
    num_train_epochs: float = flag(10.0, "passes over the data")
    per_device_train_batch_size: int = flag(256, "samples per process in one micro-batch")
    gradient_accumulation_steps: int = flag(1, "micro-batches in one optimizer step")
    learning_rate: float = flag(1e-3, "peak learning rate")
    lr_scheduler_type: str = flag("cosine", "shape after the warm-up", ("cosine", "linear", "constant"))
    warmup_steps: float = flag(0.0, "steps of linear warm-up; below 1, a share of the run")
    weight_decay: float = flag(0.0, "on matrices only, never on biases and norms")
    adam_beta1: float = flag(0.9, "AdamW")
    adam_beta2: float = flag(0.999, "AdamW")
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm; 0 does not clip")
    max_skipped_steps: int = flag(0, "updates with a non-finite gradient to skip before the run stops")
    seed: int = flag(0, "of weights, order, augmentation and dropout")
    logging_steps: int = flag(10, "steps between lines of log.jsonl")
    eval_steps: int = flag(0, "steps between evaluations; 0 evaluates before and after the training only")
    probe_dataset: str | None = flag(None, "labelled data: at each evaluation, the accuracy of k-NN on the features")
    save_steps: int = flag(500, "steps between checkpoints; 0 saves none, and the run cannot be resumed")
    save_total_limit: int = flag(2, "newest checkpoints to keep")
    resume_from_checkpoint: str | None = flag(None, "auto (the newest good one in output_dir, if any) or a path")
    report_to: str = flag("none", "experiment tracker", ("none", *TRACKERS))
    bf16: str = flag("auto", "bf16 autocast; auto uses it where the device computes it fast", ("auto", "yes", "no"))
    torch_compile: bool = flag(False, "compile the method with torch.compile")
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass, for memory")
    dataloader_num_workers: int = flag(0, "processes that prepare batches, per training process")
    ddp_find_unused_parameters: bool = flag(False, "for encoders with parameters that the loss does not reach")
    use_cpu: bool = flag(False, "leave the GPU alone")
    push_to_hub: bool = flag(False, "upload the export")
    hub_model_id: str | None = flag(None, "user/name on the Hub")
    hub_strategy: str = flag("end", "when to upload; every_save: also after each checkpoint", ("end", "every_save"))
    hub_private_repo: bool = flag(True, "whether the repository, where it is new, is private")

    def __post_init__(self) -> None:
        self.output_dir = str(Path(self.output_dir).expanduser())
        if self.resume_from_checkpoint:
            self.resume_from_checkpoint = str(Path(self.resume_from_checkpoint).expanduser())
        positive = ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps")
        for name in (*positive, "save_total_limit"):
            if getattr(self, name) <= 0:
                raise BadInput(f"--{name} is {getattr(self, name)}; it must be above 0")
        for name in ("warmup_steps", "max_grad_norm", "eval_steps", "save_steps", "max_skipped_steps"):
            if getattr(self, name) < 0:
                raise BadInput(f"--{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.seed < 2**31:
            raise BadInput(f"--seed is {self.seed}; it must be 0 or more, and below {2**31:,}")
        if self.report_to in TRACKERS and find_spec(self.report_to) is None:
            raise BadInput(f"--report_to {self.report_to}: not installed; pip install {self.report_to}")
        if self.push_to_hub and not self.hub_model_id:
            raise BadInput("--push_to_hub needs --hub_model_id user/name")

    @property
    def precision(self) -> str:
        """The device's answer to --bf16: "bf16" or "no"."""
        return "bf16" if self.bf16 == "yes" or (self.bf16 == "auto" and fast_bf16(self.use_cpu)) else "no"


def _default(of: Field):
    return of.default if of.default_factory is MISSING else of.default_factory()


Args = TypeVar("Args")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside each flag; the line breaks of a recipe's docstring kept."""


class _Parser(HfArgumentParser):
    def error(self, message: str):
        """argparse's message, and for an unknown flag the nearest ones there are; exit status 2."""
        known = [option for action in self._actions for option in action.option_strings]
        for unknown in re.findall(r"--[\w-]+", message) if "unrecognized" in message else ():
            if near := difflib.get_close_matches(unknown, known, n=3):
                message += f" (did you mean {' or '.join(near)}?)"
        self.exit(2, f"error: {message}\n--help lists every flag\n")


def parse(args_class: type[Args], argv: list[str] | None = None, description: str | None = None) -> Args:
    """The dataclass, filled from the command line."""
    parser = _Parser(args_class, description=description, allow_abbrev=False, formatter_class=_Formatter)
    given = vars(parser.parse_args(argv))
    return args_class(**{f.name: given[f.name] for f in fields(args_class)})


def command(main: Callable[[Args], None], args_class: type[Args], description: str | None = None) -> None:
    """Run `main` on the parsed flags. What the user can mend is said without a traceback; exit status 2."""
    try:
        main(parse(args_class, description=description))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def best_device(use_cpu: bool = False) -> torch.device:
    """The accelerator; the CPU where there is none, or where it is to be left alone."""
    on_cpu = use_cpu or not torch.accelerator.is_available()
    return torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()


def fast_bf16(use_cpu: bool = False) -> bool:
    """True where bf16 matrix products are faster than fp32: recent CUDA devices, CPUs with AMX, AMD's from Zen 4 on.

    bf16 to fp32, by `python -m timeit -s "import torch; a = torch.randn(2048, 2048).bfloat16()" "a @ a"` and without
    the bfloat16: 2.3 times as fast on Zen 4. Others, measured earlier: about 6 times with AMX, half to a third as fast
    on an Intel with AVX512-BF16 and no AMX, a 150th with AVX2.
    """
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities()
    return cpu.get("amx_bf16", False) or (cpu.get("avx512_bf16", False) and cpu["cpu_name"].startswith("AMD"))
