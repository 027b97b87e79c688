"""What a run reports while it trains: progress bar, log.jsonl, tracker, warnings. One device sync per logging step."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmssl import bounded_json, durable, progress
from mmssl.arguments import TrainArgs
from mmssl.device import cores, precision
from mmssl.distributed import sharded
from mmssl.errors import first_line, not_written
from mmssl.method import Method, Output
from mmssl.plain_text import counted, one_line
from mmssl.training import monitor
from mmssl.training.checkpoint import NonFinite, last_good
from mmssl.training.output_dir import CHECKPOINTS, OutputDir
from mmssl.training.summary import Summary

if TYPE_CHECKING:
    from accelerate import Accelerator


MUST_BE_FINITE = ("loss", "grad_norm")


class Log:
    """Collects the outputs of the steps; `flush` reads all of them from the device at once.

    run: the loop's Summary; the log keeps its loss, skipped steps, warnings and seconds.
    """

    FILE = "log.jsonl"

    def __init__(self, accelerator: Accelerator, run: Summary, args: TrainArgs, unit: str, total: int) -> None:
        self.accelerator, self.run, self.args, self.unit, self.total = accelerator, run, args, unit, total
        self.directory = Path(args.output_dir)
        self.file = self.directory / self.FILE
        self.window: list[tuple[list[Tensor | None], dict[str, Tensor]]] = []
        self.recent: deque[dict[str, float]] = deque(maxlen=args.logging_steps)
        self.features: Tensor | None = None
        self.watch, self.failures = monitor.CollapseWatch(), monitor.FailureWatch()
        self.started, self.samples_before = 0.0, run.samples_seen
        self.resumed_at, self.is_open, self.held_back = run.step, False, []
        shown = {"desc": "training", "unit": "step", "disable": not accelerator.is_main_process}
        self.bar = progress.bar(total=total, initial=run.step, delay=0, leave=True, **shown)

    def take_up(self) -> None:
        """Keep the resumed run's log up to the step it resumes from. Called on the main process only."""
        OutputDir(self.directory).register([self.FILE])
        _keep_lines_until(self.file, self.resumed_at)

    def open(self) -> None:
        """Start writing: first the lines that were held back. Before this call no file is touched."""
        self.is_open, args, self.tracked_before = True, self.args, self._tracked()
        if args.report_to != "none":  # tensorboard takes no lists
            flags = {k: str(v) if isinstance(v, list) else v for k, v in vars(args).items() if v is not None}
            self.accelerator.init_trackers("mmssl", config=flags)
            self._adopt_tracked()
        for line in self.held_back:
            self._write(line)

    def opening(self, method: Method, samples: int, resumed_from: Path | None) -> None:
        """Print what is about to be trained, and on what. samples: in one optimizer step of all processes."""
        trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
        processes, kind = self.accelerator.num_processes, precision(self.args).replace("no", "fp32")
        device = self.accelerator.device.type
        if device == "cpu":
            device += f" ({counted(cores(), 'core')})"
        self.say(
            f"{processes} process{'es' * (processes > 1)} on {device}, {'sharded, ' * sharded()}{kind}, "
            f"{trainable:,} trainable parameters, {self.total:,} steps of {samples:,} {self.unit}"
            + (f", resumed from {resumed_from}" if resumed_from else "")
        )
        threads = torch.get_num_threads() * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if device.startswith("cpu") and threads < cores() and (limit := os.environ.get("OMP_NUM_THREADS")):
            idle = counted(cores() - threads, "idle core")
            self.say(f"{idle}: OMP_NUM_THREADS is {limit}; unset it, or raise it, to use all")

    def say(self, sentence: str) -> None:
        """Print one line above the progress bar, on the main process only."""
        if self.accelerator.is_main_process:
            tqdm.write(one_line(sentence), file=sys.stderr)

    def warn(self, sentence: str) -> None:
        """Print the warning once, and keep it for the model card."""
        if sentence not in self.run.warnings:
            self.run.warnings.append(sentence)
            self.say(f"warning: step {self.run.step}: {sentence}")

    def start_clock(self) -> None:
        """What was done until now does not count as training time."""
        self.started = time.perf_counter()
        self._put_off(time.time() - self.bar.start_t if not self.bar.disable else 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in this block does not count as training time."""
        before = time.perf_counter()
        yield
        seconds = time.perf_counter() - before
        self.started += seconds
        self._put_off(seconds)

    def _put_off(self, seconds: float) -> None:
        """The bar's times "elapsed" and "left" are those of training alone."""
        if not self.bar.disable:  # a disabled bar has no clock
            self.bar.start_t += seconds
            self.bar.last_print_t += seconds

    def add(self, output: Output, indices: list[Tensor | None], learning_rate: float) -> None:
        """Record one optimizer step. Nothing is read from the device."""
        scalars = {"loss": output.loss.detach(), **output.metrics}
        if output.trivial_loss is not None:
            scalars["trivial_loss"] = output.loss.new_zeros(()) + output.trivial_loss
        self.window.append((indices, scalars))
        self.features, self.learning_rate = output.features, learning_rate
        self.bar.update()

    def flush(self, received: int = 0) -> int:
        """Write the mean over the window. Returns the signal to stop on if any process has received one, else 0.

        Raises NonFinite when a loss or gradient in the window is not finite and max_skipped_steps does not allow it.
        """
        if not self.window:
            return received
        run, names = self.run, list(self.window[-1][1])
        values = torch.stack([step[name].float() for _, step in self.window for name in names])
        values = values.view(len(self.window), -1)
        # one reduction is enough: a NaN on any process makes the mean NaN
        values = self.accelerator.reduce(torch.nn.functional.pad(values, (0, 1), value=float(received)), "mean")
        rows = [dict(zip([*names, "signal"], row, strict=True)) for row in values.tolist()]
        self._refuse_non_finite(rows)
        for sentence in self.failures.look(rows, run.step / self.total):
            self.warn(sentence)
        self.window.clear()

        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        run.seconds += seconds
        rate = (run.samples_seen - self.samples_before) / max(seconds, 1e-9)
        self.samples_before = run.samples_seen
        line = {"step": run.step, "epoch": run.epoch}
        for name in names:
            if finite := [row[name] for row in rows if math.isfinite(row[name])]:
                line[name] = fmean(finite)
        line |= {"learning_rate": self.learning_rate, f"{self.unit}_per_second": rate, "seconds": run.seconds}
        self.recent.extend(row for row in rows if math.isfinite(row["loss"]))
        if self.recent:
            run.loss = fmean(row["loss"] for row in self.recent)
            if "trivial_loss" in names:  # of the same batches
                run.trivial_loss = fmean(row["trivial_loss"] for row in self.recent)
        if self.accelerator.is_main_process and self.features is not None and self.features.isfinite().all():
            watched, sentence = self.watch.look(self.features, run.step / self.total)
            line |= watched
            if sentence:
                self.warn(sentence)
        self._write(line)
        self.bar.set_postfix_str(f"loss {run.loss:.4g}, {rate:,.0f} {self.unit}/s", refresh=False)
        return received or (signal.SIGTERM if any(row["signal"] for row in rows) else 0)

    def evaluation(self, values: dict[str, float]) -> None:
        self._write({f"eval_{name}" if name != "step" else name: value for name, value in values.items()})
        shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items() if k != "step" and isinstance(v, float))
        self.say(f"step {values['step']}: {shown}")

    def judge(self) -> None:
        """At the end of training, warn if the loss is no better than that of a model that ignores its input."""
        trivial = self.run.trivial_loss
        if trivial is not None and (sentence := monitor.no_better_than_trivial(self.run.loss, trivial)):
            self.warn(sentence)

    def close(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:
            self.run.attempt(f"the end of the tracker {tracker.name}", tracker.finish, None)
        self._adopt_tracked()

    def _tracked(self) -> set[Path]:
        return {path for path in (self.directory / "logs").rglob("*") if path.is_file()}

    def _adopt_tracked(self) -> None:
        """Register the tracker's files. Their names differ in every run and are known only once the files exist."""
        if self.accelerator.is_main_process and self.is_open and (new := self._tracked() - self.tracked_before):
            OutputDir(self.directory).adopt(new)

    def _write(self, line: dict) -> None:
        if not self.is_open:
            self.held_back.append(line)
            return
        if self.accelerator.is_main_process:
            try:
                with open(self.file, "a") as f:
                    f.write(bounded_json.dumps(line) + "\n")
            except OSError as error:  # losing one log line is no reason to stop the training
                self.warn(f"{self.file} could not be written: {error}")
        if self.accelerator.trackers:
            try:
                self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])
            except Exception as error:  # trackers, disks and networks raise many kinds
                self.warn(f"--report_to {self.args.report_to} failed: {type(error).__name__}: {first_line(error)}")

    def _refuse_non_finite(self, rows: list[dict[str, float]]) -> None:
        """Count the skipped steps up to max_skipped_steps; beyond that, raise and name the step and its samples."""
        from accelerate.utils import gather_object

        run, allowed = self.run, self.args.max_skipped_steps
        for i, row in enumerate(rows):
            what = [name for name in MUST_BE_FINITE if not math.isfinite(row.get(name, 0.0))]
            if not what:
                continue
            mine = [int(index) for batch in self.window[i][0] if batch is not None for index in batch]
            samples = sorted(sum(gather_object([mine]), []))
            text = (
                f"{' and '.join(what)} not finite at step {run.step - len(rows) + 1 + i}, samples "
                f"{', '.join(map(str, samples[:16])) or 'unknown'}{'...' * (len(samples) > 16)}"
            )
            if "grad_norm" in what and run.skipped_steps < allowed:  # with a finite gradient it was not skipped
                run.skipped_steps += 1
                self.say(f"skipped: {text} ({run.skipped_steps} of at most {allowed})")
                continue
            self.bar.close()
            raise NonFinite(
                f"{text}. {last_good(self.directory / CHECKPOINTS)} Lower --learning_rate, set --max_grad_norm, look "
                "at those samples, or skip a few such steps with --max_skipped_steps."
            )


def read(file: Path) -> list[dict]:
    """The lines of a log.jsonl, without those that a kill or a full disk cut off; [] if there is no file."""
    lines = []
    if not file.is_file():
        return lines
    for text in file.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            line = bounded_json.loads(text)
            if isinstance(line, dict) and "step" in line:
                lines.append(line)
    return lines


def _keep_lines_until(file: Path, step: int) -> None:
    """Drop the lines logged after the checkpoint that the run resumes from. This includes the evaluation at that step:
    it ran after the save and will run again."""
    kept = [line for line in read(file) if line["step"] < step or (line["step"] == step and "epoch" in line)]
    try:
        durable.replace(file, "".join(bounded_json.dumps(line) + "\n" for line in kept))
    except OSError as error:
        raise not_written(file, error, file.stat().st_size) from error
