"""The flags that every recipe shares, and how a recipe becomes a command.

Names and defaults are those of `transformers.TrainingArguments` wherever it has one.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import math
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, TypeVar

from transformers.hf_argparser import HfArgumentParser

from mmssl import progress
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import one_line, say, shortened

TRACKERS = ("tensorboard", "trackio", "wandb")
# flags that name a checkpoint or word vectors to start from
STARTS_FROM = ("model_name_or_path", "init_vectors", "vision_model_name_or_path")
RANGE = ("at_least", "above", "at_most", "below")
LARGEST = 2**31 - 1  # limit of a flag that sets no limit of its own
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # in messages of torch
SMALLER = "lower --per_device_train_batch_size or --batch_size, the sizes of the model or those of the images"
OBJECTS_BETWEEN_COLLECTIONS = 100_000
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on Linux; a longer one is an OSError wherever it is first looked for


def flag(
    default,
    help: str,
    choices: Iterable | None = None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    of_new_model: bool = False,
):
    """A dataclass field with its help text and, for a number or a list of numbers, its allowed range. A field that
    overrides another keeps that one's range.

    of_new_model: the flag describes a model made from scratch, and is refused beside --model_name_or_path.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below, "of_new_model": of_new_model}
    metadata = {"help": help, **limits} | ({"choices": list(choices)} if choices else {})
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Flags:
    """Base of every command's dataclass: checks the flags."""

    def __post_init__(self) -> None:
        """Raise BadInput if a number is not finite or out of range, if a text is not one of the choices or cannot be
        a name, or if a flag that describes a new model is given together with a checkpoint."""
        for f in fields(self):
            given, choices, default = getattr(self, f.name), f.metadata.get("choices"), _default(f)
            for value in given if isinstance(given, list) else [given]:
                if choices and value not in (*choices, default):
                    raise BadInput(f"--{f.name} is {value!r}; choose from {', '.join(map(str, choices))}")
                if isinstance(value, str) and value != default:
                    check_text(f"--{f.name}", value)
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    _check_range(f.name, value, **limits(type(self), f.name))
        new = tuple(f.name for f in fields(self) if f.metadata.get("of_new_model"))
        if new and self.model_name_or_path:
            self.refuse(new, f"--model_name_or_path {self.model_name_or_path}: the checkpoint decides them")

    def refuse(self, names: tuple[str, ...], because: str) -> None:
        """Raise BadInput if one of these flags is not at its default: it would be ignored silently."""
        changed = [f"--{f.name}" for f in fields(self) if f.name in names and getattr(self, f.name) != _default(f)]
        if changed:
            raise BadInput(f"{', '.join(changed)} {'has' if len(changed) == 1 else 'have'} no effect with {because}")


def check_text(flag: str, text: str) -> None:
    """Raise BadInput, beginning with `flag`, if a text can be no name of a file, a column or a model, nor several with
    commas between them."""
    if not text.strip():
        raise BadInput(f"{flag} is empty; give a value, or leave it out")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{flag} {text} is not valid UTF-8, which data and models are read with; rename it") from error
    if b"\0" in encoded:
        raise BadInput(f"{flag} {text} contains a NUL byte")
    for path in encoded.split(b","):
        if len(path) > LONGEST_PATH or max(map(len, path.split(b"/"))) > LONGEST_NAME:
            raise BadInput(f"{flag} {text} is longer than a path can be ({LONGEST_NAME} bytes between two slashes)")
        try:
            Path(path.decode()).expanduser()
        except RuntimeError as error:
            raise BadInput(f"{flag} {text}: there is no user of that name") from error


def check_divides(part: str, size: int, whole: str, of: int) -> None:
    """Raise BadInput, with the sizes that would do, unless the flag `part` divides the flag `whole`."""
    if not 0 < size <= of or of % size:
        fitting = [other for other in range(2, of) if of % other == 0]
        raise BadInput(f"{part} {size} does not divide {whole} {of}; these would: {fitting or 'none'}")


def limits(flags: type[Flags], name: str) -> dict[str, float]:
    """The range of a flag: its own, or that of the field it overrides."""
    for base in flags.__mro__:
        own = base.__dict__.get("__dataclass_fields__", {}).get(name)
        found = {kind: own.metadata[kind] for kind in RANGE if own.metadata.get(kind) is not None} if own else {}
        if found:
            return found
    return {}


def _check_range(
    name: str,
    value: float,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = LARGEST,
    below: float = math.inf,
) -> None:
    rules = {
        "finite": isinstance(value, int) or math.isfinite(value),  # an int may be too large for a float
        f"{at_least} or more": value >= at_least,
        f"above {above}": value > above,
        f"below {below}": value < below,
        f"at most {at_most:,}": value <= at_most,
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise BadInput(f"--{name} is {value}; it must be {broken[0]}")


@dataclass
class TrainArgs(Flags):
    dataset: str = flag("", "a built-in name, a file, a folder or a Hub id")
    output_dir: str = flag("runs/out", "where the encoder, log, figures and checkpoints go")
    overwrite_output_dir: bool = flag(False, "delete the files of an earlier run in output_dir")
    max_steps: int = flag(-1, "optimizer steps; above 0 it overrides num_train_epochs", at_least=-1, at_most=10**9)
    num_train_epochs: float = flag(10.0, "passes over the data", above=0, at_most=10**6)
    per_device_train_batch_size: int = flag(256, "samples per process in one micro-batch", at_least=1, at_most=10**7)
    gradient_accumulation_steps: int = flag(1, "micro-batches in one optimizer step", at_least=1, at_most=10**6)
    learning_rate: float = flag(1e-3, "peak learning rate", above=0, at_most=1e4)
    lr_scheduler_type: str = flag("cosine", "schedule after the warm-up", ("cosine", "linear", "constant"))
    warmup_steps: float = flag(0.0, "linear warm-up steps; below 1, a fraction of the run", at_least=0, at_most=10**9)
    weight_decay: float = flag(0.0, "weight decay of matrices; biases and norms have none", at_least=0, at_most=100)
    adam_beta1: float = flag(0.9, "AdamW's beta1", at_least=0, below=1)
    adam_beta2: float = flag(0.999, "AdamW's beta2", at_least=0, below=1)
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm; 0: no clipping", at_least=0)
    max_skipped_steps: int = flag(0, "updates with a non-finite gradient to skip before the run stops", at_least=0)
    seed: int = flag(0, "seed of weights, data order, augmentation and dropout", at_least=0)
    logging_steps: int = flag(10, "steps between lines of log.jsonl", at_least=1)
    eval_steps: int = flag(0, "steps between evaluations; 0: only before and after training", at_least=0)
    probe_dataset: str | None = flag(
        None,
        "labelled data for a k-NN probe of the features at each evaluation; none: no probe; default: the training "
        "data, if it is built in and has labels",
    )
    save_steps: int = flag(500, "steps between checkpoints; 0: none, and the run cannot be resumed", at_least=0)
    save_total_limit: int = flag(2, "number of checkpoints to keep, the newest ones", at_least=1)
    resume_from_checkpoint: str | None = flag(
        None, "auto (the newest good checkpoint in output_dir, or a new run if there is none) or a path"
    )
    report_to: str = flag("none", "experiment tracker", ("none", *TRACKERS))
    bf16: str = flag("auto", "bf16 autocast; auto: if the device computes it fast", ("auto", "yes", "no"))
    torch_compile: str = flag(
        "no",
        "what torch.compile compiles: each layer of a network, or the whole method, which takes minutes; auto: the "
        "layers, if the training takes more than 20 minutes and a few steps of it are then faster",
        ("no", "auto", "layers", "whole"),
    )
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass to save memory")
    dataloader_num_workers: int = flag(
        0, "processes that prepare batches, per training process", at_least=0, at_most=1024
    )
    ddp_find_unused_parameters: bool = flag(False, "for encoders with parameters that the loss does not reach")
    use_cpu: bool = flag(False, "train on the CPU even if there is a GPU")
    full_determinism: bool = flag(
        False, "use deterministic kernels on a GPU, where there are any, so that a resume is exact to the bit; slower"
    )
    push_to_hub: bool = flag(False, "upload the exported model to the Hub")
    hub_model_id: str | None = flag(None, "where to upload it: user/name on the Hub")
    hub_strategy: str = flag("end", "when to upload; every_save: also after each checkpoint", ("end", "every_save"))
    hub_private_repo: bool = flag(True, "make a new repository private")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.output_dir = str(Path(self.output_dir).expanduser())
        if self.resume_from_checkpoint:
            self.resume_from_checkpoint = str(Path(self.resume_from_checkpoint).expanduser())
        if self.report_to in TRACKERS and find_spec(self.report_to) is None:
            raise BadInput(f"--report_to {self.report_to}: not installed; pip install {self.report_to}")
        if self.push_to_hub and not self.hub_model_id:
            raise BadInput("--push_to_hub needs --hub_model_id user/name")
        if self.max_steps > 0:
            self.check_warmup(self.max_steps)

    @property
    def base_model(self) -> str | None:
        """The checkpoint or word vectors that training starts from, a path or a Hub id; None if all is new."""
        given = (getattr(self, f.name) for f in fields(self) if f.name in STARTS_FROM)
        return next(filter(None, given), None)

    def check_warmup(self, total: int) -> None:
        """Raise BadInput if the warm-up is longer than the run of `total` steps."""
        if self.warmup_steps >= 1 and self.warmup_steps > total:
            raise BadInput(
                f"--warmup_steps {self.warmup_steps:g} is more than the {total:,} steps of the run, which would never "
                "reach its learning rate; lower it, or give a fraction of the run, below 1"
            )


def _default(f: Field):
    return f.default if f.default_factory is MISSING else f.default_factory()


Args = TypeVar("Args")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each flag's default and keeps the line breaks of a recipe's docstring."""


class _Parser(HfArgumentParser):
    def add_argument(self, *names, **options):
        """Drop the metadata that only Flags reads, and escape % because our help texts are not templates."""
        options = {name: value for name, value in options.items() if name not in (*RANGE, "of_new_model")}
        if names[0].startswith("--no_"):  # HfArgumentParser repeats the text of the flag that it turns off
            options["help"] = f"the opposite of --{names[0].removeprefix('--no_')}"
        return super().add_argument(*names, **options | {"help": options.get("help", "").replace("%", "%%")})

    def error(self, message: str):
        """Print argparse's message and, for an unknown flag, the most similar known ones. Exit status 2."""
        known = [option for action in self._actions for option in action.option_strings]
        for unknown in re.findall(r"--[\w-]+", message) if "unrecognized" in message else ():
            if near := difflib.get_close_matches(unknown, known, n=3):
                message += f" (did you mean {' or '.join(near)}?)"
        self.exit(2, f"error: {shortened(one_line(message))}; --help lists every flag\n")


def parse(args_class: type[Args], argv: list[str] | None = None, description: str | None = None) -> Args:
    """The dataclass, filled from the command line."""
    parser = _Parser(args_class, description=description, allow_abbrev=False, formatter_class=_Formatter)
    given = vars(parser.parse_args(argv))
    return args_class(**{f.name: given[f.name] for f in fields(args_class)})


def layers_by_width(sizes: Mapping[str, tuple[int, int]]) -> str:
    """Names of sizes with their layers and width, for the help of a flag: "tiny 2x128, mini 4x256"."""
    return ", ".join(f"{name} {layers}x{width}" for name, (layers, width) in sizes.items())


def recipe(file: Path) -> tuple[Callable[[Flags], None], type[Flags]]:
    """(its main, the class of its flags)."""
    names = runpy.run_path(str(file), run_name=file.stem)
    kinds = (each for each in names.values() if isinstance(each, type) and each.__module__ == file.stem)
    return names["main"], next(each for each in kinds if issubclass(each, Flags))


def run_recipe(file: Path, argv: list[str]) -> None:
    """As `python file argv`, but errors are raised."""
    main, args_class = recipe(file)
    sys.argv = [str(file), *argv]  # the model card names the command
    main(parse(args_class, argv))


def collect_seldom() -> None:
    """Importing transformers makes a million objects; the collector of Python's defaults looks at them so often that a
    program starts a second later, and once more at exit, which takes another second."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)


def command(main: Callable[[Args], None], args_class: type[Args], description: str | None = None) -> None:
    """Run `main` on the parsed flags. Errors that the user can fix are printed without a traceback; exit status 2."""
    collect_seldom()
    with explained():
        given = parse(args_class, description=description)
        progress.calm_libraries()
        main(given)


@contextmanager
def explained() -> Iterator[None]:
    """Errors that the user can fix are printed in one line, without a traceback; exit status 2. So is Ctrl-C where no
    training or export handles it; exit status 130."""
    try:
        yield
    except BadInput as error:
        _leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave("SIGINT: stopped", 130)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _leave(f"error: out of memory ({first_line(error)}): {SMALLER}", 2)


def _leave(sentence: str, status: int) -> NoReturn:
    say(sentence, sys.stderr)
    sys.exit(status)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory is full, on a GPU (torch.OutOfMemoryError) or not: torch's allocator for CPUs has no class."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in OUT_OF_MEMORY)
