"""Handling of SIGTERM, SIGHUP, SIGUSR1 (preemption, a closed terminal, Slurm's warning) and SIGINT (Ctrl-C): training
finishes the step, saves a checkpoint and exits; an export exits at once and prints how to continue."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mmssl.plain_text import say

LEAVE = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Signals:
    """Records a signal so that the loop can finish the step and save a checkpoint. A second Ctrl-C kills."""

    COPIES = 2.0  # seconds: one Ctrl-C arrives from the terminal and again from the launcher

    def __init__(self) -> None:
        self.received, self.at = 0, 0.0

    def __enter__(self) -> Signals:
        self.before = {number: signal.signal(number, self._note) for number in LEAVE}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if not self.received:
            self.received, self.at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.at > self.COPIES:
            raise KeyboardInterrupt


@contextmanager
def interruptible(how_to_continue: str) -> Iterator[None]:
    """A signal prints this sentence and ends the block at once with SystemExit; `finally` clauses in it still run."""

    def leave(number: int, frame) -> None:
        say(f"{signal.Signals(number).name}: {how_to_continue}", sys.stderr)
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in LEAVE}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parting_words(number: int, step: int, saved: bool) -> str:
    name = signal.Signals(number).name
    if saved:
        return f"{name}: saved at step {step}. Continue with the same command and --resume_from_checkpoint auto"
    return f"{name}: stopped at step {step}; nothing was saved, because --save_steps is 0"
