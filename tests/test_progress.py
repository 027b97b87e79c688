"""Progress: bars on a terminal, lines in a log file."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest
from accelerate import Accelerator

from mmssl import progress
from mmssl.arguments import TrainArgs
from mmssl.training.log import Log
from mmssl.training.summary import Summary

CODE = """
import io, sys
from itertools import count
from mmssl import progress

class Terminal(io.StringIO):
    def isatty(self):
        return {terminal}

progress.calm_libraries()
sys.stderr = Terminal()
import tqdm.std
from datasets import Dataset
from transformers.utils import logging

rows = Dataset.from_dict({{"a": list(range(30))}})
seconds = count(0, {second})
tqdm.std.time = lambda: next(seconds)
rows.map(lambda row: row, load_from_cache_file=False, desc="Map")
rows.to_parquet(io.BytesIO())
for _ in logging.tqdm(range(30), desc="Loading weights"):
    pass
print(sys.stderr.getvalue().replace("\\r", "|"))
"""


def said_by_libraries(terminal: bool, second: int) -> str:
    """What datasets and transformers write on stderr if each look at the clock is `second` later."""
    code = CODE.format(terminal=terminal, second=second)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


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


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log file"])
def test_short_bars_of_libraries_are_silent(terminal):
    assert said_by_libraries(terminal, 0) == ""


def test_long_bars_of_libraries_are_redrawn_on_a_terminal():
    said = said_by_libraries(True, 100)
    assert "|Map" in said and "|Loading weights" in said


def test_long_bars_of_libraries_are_lines_in_a_log_file():
    said = said_by_libraries(False, 100).splitlines()
    assert any(line.startswith("Map: ") for line in said)
    assert any(line.startswith("Loading weights: ") and " of 30, " in line for line in said)
    assert not any("|" in line for line in said)


def test_the_time_of_evaluations_is_neither_elapsed_nor_expected(tmp_path):
    log = Log(Accelerator(cpu=True), Summary(), TrainArgs(output_dir=str(tmp_path)), "images", total=10)
    time.sleep(0.2)  # the evaluation before the first step
    log.start_clock()
    with log.paused():
        time.sleep(0.2)  # an evaluation between two steps
    assert log.bar.format_dict["elapsed"] < 0.1
    log.close()


def test_a_command_shows_no_bars_of_libraries_in_a_log_file(tmp_path):
    (tmp_path / "script.py").write_text(
        "import tqdm\nfrom mmssl.arguments import TrainArgs, command\n"
        "command(lambda args: list(tqdm.tqdm(range(3), 'Loading weights')), TrainArgs)"
    )
    run = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stderr == ""
