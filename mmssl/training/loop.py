"""The only training loop. It knows nothing of any method: method.py is the seam, steps.py takes one optimizer step.

Every process holds the whole method and a share of each batch (DDP). Between two logging steps nothing waits for the
device. A run stopped at any moment and resumed ends with the weights, bit for bit, of one never stopped.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch.optim import Optimizer

from mmssl.arguments import TrainArgs
from mmssl.data.loader import Loader
from mmssl.device import best_device, precision
from mmssl.distributed import alone, share_batch_norm
from mmssl.errors import BadInput, first_line
from mmssl.kernels.attention import fast_attention
from mmssl.method import Method, Output
from mmssl.training import checkpoint, steps
from mmssl.training.log import Log
from mmssl.training.optim import schedule, set_learning_rate
from mmssl.training.output_dir import CHECKPOINTS, OutputDir
from mmssl.training.signals import Signals, parting_words
from mmssl.training.summary import Summary

if TYPE_CHECKING:
    from accelerate import Accelerator


MEETING = "start it with `accelerate launch`, or unset MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK and LOCAL_RANK"


def start(args: TrainArgs) -> None:
    """What comes before anything costly: the processes, the output directory, the seed. Every recipe's first line."""
    from accelerate import PartialState
    from accelerate.utils import set_seed

    _refuse_sharding()
    # the others wait while one evaluates; NCCL's own patience is ten minutes
    _refuse_environment()
    try:
        state = PartialState(cpu=best_device(args.use_cpu).type == "cpu", timeout=timedelta(hours=6))
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"the processes of this run did not find each other ({first_line(error)}): {MEETING}") from error
    _on_main_process(lambda: OutputDir(args.output_dir).check(args))
    atexit.register(state.destroy_process_group)
    set_seed(args.seed)  # equal on all processes: they must build equal weights


def train(
    method: Method,
    loader: Loader,
    args: TrainArgs,
    optimizers: Sequence[Optimizer],
    step: Callable[..., Output] = steps.standard,
    evaluate: Callable[[Method], dict[str, float]] | None = None,
    after_save: Callable[[int, int], None] | None = None,
) -> Summary:
    """Train `method` in place; resume, log, evaluate, save and stop as `args` say.

    evaluate: called on the main process with the bare method in eval mode, before the first step, every eval_steps and
    at the end; what it returns is logged and kept in the summary. after_save: called on the main process with (step,
    steps of the whole run) when a checkpoint has been written.

    Raises NonFinite; BadInput, also where a checkpoint cannot be written; SystemExit on SIGTERM or SIGINT, after
    saving (with several processes at the next logging step, where they agree).
    """
    from accelerate.utils import broadcast_object_list, set_seed

    accelerator = _accelerator(args)
    per_step, single = args.gradient_accumulation_steps, accelerator.num_processes == 1
    global_batch = loader.batch_size * accelerator.num_processes
    samples = global_batch * per_step
    total = total_steps(loader, args)
    checkpoints, bare = Path(args.output_dir, CHECKPOINTS), method
    if args.torch_compile:
        bare.compile()
    share_batch_norm(bare)
    method = accelerator.prepare(bare)
    set_learning_rate(optimizers, 1.0)  # each group notes the rate that it was built with
    if accelerator.num_processes > 2:
        with closing(loader.epoch(0)) as batches:
            _, first = _apart(islice(batches, per_step), accelerator.device)
        steps.rehearse(step, method, first, optimizers, accelerator)
    set_seed(args.seed, device_specific=True)  # from here on each process draws its own dropout and augmentation

    run, differences = Summary(), []
    # one process looks for all: reading every byte of a checkpoint once is enough
    found = None

    def find() -> None:
        nonlocal found
        found = checkpoint.find(args.resume_from_checkpoint, checkpoints, accelerator.device, _progress)

    _on_main_process(find)
    if found := broadcast_object_list([found])[0]:
        progress = checkpoint.load(found, bare, optimizers, accelerator)
        run = _progress(progress)
        differences = checkpoint.differences(progress, args, accelerator, loader.streaming)
    if args.max_skipped_steps:
        step = steps.skip_non_finite(step)

    log = Log(accelerator, run, args, bare.unit, total)
    log.opening(bare, samples, found)
    for difference in differences:
        log.warn(difference)

    def data() -> Iterator[list[dict[str, torch.Tensor]]]:
        """The micro-batches of each step, from the run's position on, epoch after epoch."""
        while True:
            if run.samples == 0:
                bare.start_epoch(run.epoch, accelerator, optimizers)
            with closing(loader.epoch(run.epoch, start=run.samples // global_batch)) as batches:
                # what is left at the end of an epoch is too little for a step, and dropped
                while len(micro_batches := list(islice(batches, per_step))) == per_step:
                    yield micro_batches
            if run.samples == 0:
                raise BadInput(
                    f"an epoch holds fewer than {samples} samples, one optimizer step of all processes; lower "
                    "--per_device_train_batch_size"
                )
            run.epoch, run.samples = run.epoch + 1, 0

    def begin() -> None:
        def write() -> None:
            OutputDir(args.output_dir).begin(args, found)
            log.take_up()

        _on_main_process(write)
        log.open()

    def assess() -> None:
        if evaluate is None:
            return
        if accelerator.is_main_process:
            devices = [accelerator.device] if accelerator.device.type == "cuda" else []
            # an evaluation must not move the random numbers of the training
            with torch.random.fork_rng(devices), torch.no_grad(), accelerator.autocast(), alone():
                bare.eval()
                if run.step < total:
                    values = evaluate(bare)
                else:  # what was trained is still to be exported
                    values = run.attempt("the last evaluation", lambda: evaluate(bare), {})
                run.evaluations.append({"step": run.step, **values})
                bare.train()
            log.evaluation(run.evaluations[-1])
        accelerator.wait_for_everyone()

    def save() -> None:
        log.flush()  # first: weights that a non-finite loss has touched must not be kept
        progress = {"summary": asdict(run), "args": asdict(args)} | checkpoint.surroundings(accelerator)
        checkpoint.save(checkpoints, run.step, bare, optimizers, accelerator, progress)
        if accelerator.is_main_process:
            checkpoint.prune(checkpoints, run.step, args.save_total_limit)
            if after_save is not None:
                after_save(run.step, total)

    def leave(received: int) -> NoReturn:
        log.close()
        log.say(parting_words(received, run.step, saved=args.save_steps > 0))
        sys.exit(128 + received)

    with fast_attention(), Signals() as signals, closing(data()) as steps_of_data:
        if run.step == 0 or run.step >= total or _due(run.step, args.eval_steps):
            assess()
        if run.step >= total:
            begin()
        method.train()
        log.start_clock()
        while run.step < total:
            indices, micro_batches = _apart(next(steps_of_data), accelerator.device)
            bare.progress = run.step / total
            factor = schedule(run.step, total, args.warmup_steps, args.lr_scheduler_type)
            set_learning_rate(optimizers, factor)
            output = step(method, micro_batches, optimizers, accelerator, args.max_grad_norm)
            if not log.is_open:  # a run that fails before it has learned anything leaves all as it was
                begin()
            run.step += 1
            run.samples += samples
            run.samples_seen += samples
            log.add(output, indices, learning_rate=args.learning_rate * factor)

            last = run.step == total
            received = 0
            if run.step % args.logging_steps == 0 or last or (single and signals.received):
                received = log.flush(signals.received)  # processes agree here
            if received or last or _due(run.step, args.save_steps) or _due(run.step, args.eval_steps):
                with log.paused():
                    if args.save_steps and (received or last or _due(run.step, args.save_steps)):
                        save()
                    if received:
                        leave(received)
                    if last or _due(run.step, args.eval_steps):
                        assess()
        if signals.received:  # in the last evaluation
            leave(signals.received)
    log.judge()
    log.close()
    return run


def _progress(saved: dict) -> Summary:
    """Where the run stood. Raises BadInput where a version that knows other fields saved it."""
    values, known = saved["summary"], Summary()
    for name, value in values.items():
        if name not in vars(known):
            raise BadInput(f"a later version of mmssl wrote it: {name} is not known to this one")
        kind = (int, float, type(None)) if name == "trivial_loss" else type(getattr(known, name))
        if not isinstance(value, (int, float) if kind is float else kind):
            raise BadInput(f"{name} is {value!r}, no {type(getattr(known, name)).__name__}")
    if not isinstance(saved["args"], dict):
        raise BadInput("args are no flags")
    return Summary(**values)


def total_steps(loader: Loader, args: TrainArgs) -> int:
    """Optimizer steps of the whole run."""
    if args.max_steps > 0:
        return args.max_steps
    per_epoch = len(loader) // args.gradient_accumulation_steps
    if per_epoch == 0:
        raise BadInput(
            f"an epoch has {len(loader)} batches, fewer than --gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps}; lower that or --per_device_train_batch_size"
        )
    return max(1, round(args.num_train_epochs * per_epoch))


def _accelerator(args: TrainArgs) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    AcceleratorState._reset_state()  # one process may train twice, the second time in another precision
    return Accelerator(
        cpu=best_device(args.use_cpu).type == "cpu",
        mixed_precision=precision(args),
        # the flags decide this, never what a launcher or its configuration left in the environment
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=Path(args.output_dir, "logs"),
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                broadcast_buffers=False,  # a queue is equal everywhere already, a recurrent state must not become so
                find_unused_parameters=args.ddp_find_unused_parameters,
            )
        ],
    )


def _on_main_process(check: Callable[[], None]) -> None:
    """What it refuses, all processes refuse: none may wait for one that has left."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    refused = None
    if PartialState().is_main_process:
        try:
            check()
        except BadInput as error:
            refused = error
    if said := broadcast_object_list([refused and str(refused)])[0]:
        raise refused or BadInput(said)


def _refuse_environment() -> None:
    """What a launcher leaves there; without this look a wrong address is tried for hours."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name, "0")
        if not value.isdecimal() or int(value) > 65535:
            raise BadInput(f"{name} is {value!r} in the environment, no number that it can be: {MEETING}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (address := os.environ.get("MASTER_ADDR")):
        try:
            socket.getaddrinfo(address, None)
        except (OSError, UnicodeError) as error:
            raise BadInput(f"MASTER_ADDR is {address!r}, which has no address ({error}): {MEETING}") from error


def _refuse_sharding() -> None:
    """Never something else than was asked for: accelerate itself would turn FSDP on a CPU into DDP without a word."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise BadInput(
                f"accelerate is configured for {name}, but here every process holds the whole model: launch with "
                "--multi_gpu. For a large encoder, --gradient_checkpointing, --bf16 yes and --grad_cache save memory."
            )


def _apart(batches: Iterable[dict], device: torch.device) -> tuple[list[torch.Tensor | None], list[dict]]:
    """The samples' indices, and on the device what the method is given."""
    batches = list(batches)
    indices = [batch.pop("index", None) for batch in batches]
    return indices, [{name: value.to(device, non_blocking=True) for name, value in b.items()} for b in batches]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
