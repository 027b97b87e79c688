"""The only training loop. It knows no method: method.py is the interface, steps.py takes one optimizer step.

Every process has a part of each batch, and the whole method (DDP) or a part of it (FSDP2, see sharding.py). Between two
logging steps nothing waits for the device. A run that is stopped at any moment and resumed ends with exactly the
weights of a run that was never stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch.optim import Optimizer

from mmssl.arguments import TrainArgs
from mmssl.data.loader import Loader
from mmssl.device import best_device, precision
from mmssl.distributed import alone, sharded, share_batch_norm, unwrap
from mmssl.errors import BadInput
from mmssl.kernels.attention import fast_attention
from mmssl.method import Method, Output
from mmssl.training import checkpoint, compiling, sharding, steps
from mmssl.training.log import Log
from mmssl.training.optim import schedule, set_learning_rate
from mmssl.training.output_dir import CHECKPOINTS, OutputDir
from mmssl.training.signals import Signals, parting_words
from mmssl.training.start import on_main_process
from mmssl.training.summary import Summary

if TYPE_CHECKING:
    from accelerate import Accelerator


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

    evaluate: called on the main process with the unwrapped method in eval mode, before the first step, every eval_steps
    and at the end; its values are logged and kept in the summary. after_save: called on the main process with (step,
    steps of the whole run) after each checkpoint.

    Raises NonFinite; BadInput, also if a checkpoint cannot be written; SystemExit on SIGTERM or SIGINT, after saving
    (several processes agree on it at the next logging step).
    """
    from accelerate.utils import broadcast_object_list, set_seed

    accelerator = _accelerator(args)
    per_step, single = args.gradient_accumulation_steps, accelerator.num_processes == 1
    global_batch = loader.batch_size * accelerator.num_processes
    samples = global_batch * per_step
    total = total_steps(loader, args)
    args.check_warmup(total)
    checkpoints, whole = Path(args.output_dir, CHECKPOINTS), method
    share_batch_norm(whole)
    method, step = sharding.prepare(whole, step, optimizers, accelerator)
    bare = unwrap(method)
    set_learning_rate(optimizers, 1.0)  # stores each group's initial rate

    def first_step() -> tuple:
        with closing(loader.epoch(0)) as batches:
            return step, method, _to_device(islice(batches, per_step), accelerator.device)[1], optimizers, accelerator

    if accelerator.num_processes > 2 and not sharded():
        steps.rehearse(*first_step())

    run, differences, about = Summary(), [], None
    # the main process searches for all of them: one read of every byte of a checkpoint is enough
    found = None

    def find() -> None:
        nonlocal found
        found = checkpoint.find(args.resume_from_checkpoint, checkpoints, accelerator.device, _progress)

    on_main_process(find)
    found = broadcast_object_list([found])[0]
    if args.torch_compile == compiling.AUTO and not found:
        with fast_attention():  # as in the training
            run.compiled, about = compiling.choose(*first_step(), total)
    set_seed(args.seed, device_specific=True)  # from here on each process draws its own dropout and augmentation
    if found:
        progress = checkpoint.load(found, bare, optimizers, accelerator)
        run = _progress(progress)
        differences = checkpoint.differences(progress, args, accelerator, len(loader.dataset))
    if args.torch_compile != compiling.AUTO:
        run.compiled = args.torch_compile
    elif found:
        about = f"{run.compiled}, as in the run that is resumed"
    notice = compiling.begin(bare, run.compiled)
    if args.max_skipped_steps:
        step = steps.skip_non_finite(step)

    log = Log(accelerator, run, args, bare.unit, total)
    log.opening(bare, samples, found)
    if about or notice:
        log.say(f"--torch_compile {args.torch_compile}: {about or notice}")
    for difference in differences:
        log.warn(difference)
    if found and args.save_steps and (later := checkpoint.later(checkpoints, found)):
        log.warn(f"the next save deletes the checkpoints after {found.name}: {', '.join(later)}")

    def start_epoch() -> None:
        with compiling.paused(run.compiled):
            bare.start_epoch(run.epoch, accelerator, optimizers)

    def data() -> Iterator[list[dict[str, torch.Tensor]]]:
        """The micro-batches of each step, from the run's position on, epoch after epoch."""
        while True:
            if run.samples == 0 and run.step > 0:  # the first epoch is started before the first evaluation
                start_epoch()
            with closing(loader.epoch(run.epoch, start=run.samples // global_batch)) as batches:
                # the end of an epoch that does not fill a step is dropped
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

        on_main_process(write)
        log.open()

    def assess() -> None:
        if evaluate is None:
            return
        sharding.collect(whole, bare, accelerator.device)
        if accelerator.is_main_process:
            devices = [accelerator.device] if accelerator.device.type == "cuda" else []
            # an evaluation must not change the random states of the training
            uncompiled = compiling.paused(run.compiled)
            with torch.random.fork_rng(devices), torch.no_grad(), accelerator.autocast(), alone(), uncompiled:
                whole.eval()
                if run.step < total:
                    values = evaluate(whole)
                else:  # the trained model must still be exported
                    values = run.attempt("the last evaluation", lambda: evaluate(whole), {})
                run.evaluations.append({"step": run.step, **values})
                whole.train()
            log.evaluation(run.evaluations[-1])
            sharding.put_away(whole, bare)
        accelerator.wait_for_everyone()

    def save() -> None:
        log.flush()  # before saving: raises on a non-finite loss, whose weights must not be saved
        progress = {"summary": asdict(run), "args": asdict(args)}
        progress |= checkpoint.surroundings(accelerator, len(loader.dataset))
        checkpoint.save(checkpoints, run.step, bare, optimizers, accelerator, progress)
        sharding.collect(whole, bare, torch.device("cpu"))
        if accelerator.is_main_process:
            checkpoint.prune(checkpoints, run.step, args.save_total_limit)
            if after_save is not None:
                after_save(run.step, total)

    def leave(received: int) -> NoReturn:
        log.close()
        log.say(parting_words(received, run.step, saved=args.save_steps > 0))
        sys.exit(128 + received)

    with fast_attention(), Signals() as signals, closing(data()) as steps_of_data:
        method.train()
        log.start_clock()
        if run.step == 0:
            start_epoch()
        if run.step == 0 or run.step >= total or _due(run.step, args.eval_steps):
            with log.paused():
                assess()
        if run.step >= total:
            begin()
        while run.step < total:
            indices, micro_batches = _to_device(next(steps_of_data), accelerator.device)
            whole.progress = bare.progress = run.step / total
            factor = schedule(run.step, total, args.warmup_steps, args.lr_scheduler_type)
            set_learning_rate(optimizers, factor)
            output = step(method, micro_batches, optimizers, accelerator, args.max_grad_norm)
            if not log.is_open:  # only after the first step: a run that fails before it changes no file
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
    compiling.end(bare)
    sharding.collect(whole, bare, accelerator.device)
    log.judge()
    log.close()
    return run


def _progress(saved: dict) -> Summary:
    """The saved Summary. Raises BadInput if another version of mmssl saved it with other fields."""
    values, known = saved["summary"], Summary()
    for name, value in values.items():
        if name not in vars(known):
            raise BadInput(f"a later version of mmssl wrote it: it has the unknown field {name}")
        kind = (int, float, type(None)) if name == "trivial_loss" else type(getattr(known, name))
        if not isinstance(value, (int, float) if kind is float else kind):
            raise BadInput(f"{name} is {value!r}, expected {type(getattr(known, name)).__name__}")
    if not isinstance(saved["args"], dict):
        raise BadInput("args is not a dict of flags")
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
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, patch_environment

    AcceleratorState._reset_state()  # a second training in the same process may use another precision
    with patch_environment(accelerate_use_fsdp="false"):  # sharding.py does it, on any device
        return Accelerator(
            cpu=best_device(args.use_cpu).type == "cpu",
            mixed_precision=precision(args),
            # only the flags decide this, not the environment of a launcher
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=None if args.report_to == "none" else args.report_to,
            project_dir=Path(args.output_dir, "logs"),
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False,  # a queue is equal everywhere already; recurrent states stay different
                    find_unused_parameters=args.ddp_find_unused_parameters,
                )
            ],
        )


def _to_device(batches: Iterable[dict], device: torch.device) -> tuple[list[torch.Tensor | None], list[dict]]:
    """(the sample indices of each batch, the batches without them, on the device)."""
    batches = list(batches)
    indices = [batch.pop("index", None) for batch in batches]
    return indices, [{name: value.to(device, non_blocking=True) for name, value in b.items()} for b in batches]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
