"""Progress: bars on a terminal, lines in a log file."""

from __future__ import annotations

import io
import sys

import pytest

from mmssl import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def slow_clock(monkeypatch):
    """Each look at the clock is ten seconds later."""
    seconds = iter(range(0, 10**6, 10))
    monkeypatch.setattr("tqdm.std.time", lambda: next(seconds))


def test_in_a_log_file_a_bar_is_a_line_a_minute(monkeypatch, slow_clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(total=1000, desc="training", unit="step") as bar:
        for _ in range(30):
            bar.set_postfix_str("loss 1.5", refresh=False)
            bar.update()
    lines = sys.stderr.getvalue().splitlines()
    assert 2 <= len(lines) <= 6 and not any("\r" in line for line in lines)
    assert all(line.startswith("training: ") and " of 1000, " in line and "loss 1.5" in line for line in lines)


def test_in_a_log_file_what_takes_less_than_a_minute_is_silent(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress.bar(iterable=range(1000), desc="features", unit="batch")) == list(range(1000))
    assert sys.stderr.getvalue() == ""


def test_on_a_terminal_it_is_redrawn_in_place(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar(total=10, desc="training", unit="step", delay=0, leave=True, file=sys.stderr) as bar:
        bar.update(10)
    assert "\r" in sys.stderr.getvalue() and "10/10" in sys.stderr.getvalue()
