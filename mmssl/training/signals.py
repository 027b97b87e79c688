"""SIGTERM and SIGINT (preemption, Ctrl-C): the step is finished and a checkpoint saved before the run leaves."""

from __future__ import annotations

import signal
import time


class Signals:
    """Notes SIGTERM and SIGINT instead of dying: the step ends, a checkpoint is saved. A second Ctrl-C kills."""

    COPIES = 2.0  # seconds: one Ctrl-C arrives from the terminal, and again from the launcher

    def __init__(self) -> None:
        self.received, self.at = 0, 0.0

    def __enter__(self) -> Signals:
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if not self.received:
            self.received, self.at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.at > self.COPIES:
            raise KeyboardInterrupt


def parting_words(number: int, step: int, saved: bool) -> str:
    name = signal.Signals(number).name
    if saved:
        return f"{name}: saved at step {step}. Go on with the same command and --resume_from_checkpoint auto"
    return f"{name}: left at step {step}; nothing was saved, because --save_steps is 0"
