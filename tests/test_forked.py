"""What happens in a forked process stays there, except for why it failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mmssl import forked
from mmssl.errors import BadInput


def write(file: Path) -> None:
    file.write_text(f"{os.getpid()} {float(torch.ones(1000, 1000).mm(torch.ones(1000, 1000)).mean())}")


def refuse() -> None:
    raise BadInput("a remedy")


def fail() -> None:
    raise KeyError("lost")


def test_it_runs_elsewhere_and_torch_computes_there(tmp_path):
    forked.run(write, tmp_path / "file")
    process, value = (tmp_path / "file").read_text().split()
    assert int(process) != os.getpid() and float(value) == 1000


def test_a_failure_says_why():
    with pytest.raises(forked.Failed, match="^a remedy$"):
        forked.run(refuse)
    with pytest.raises(forked.Failed, match="^KeyError: 'lost'$"):
        forked.run(fail)


def test_a_crash_ends_only_the_forked_process():
    with pytest.raises(forked.Failed, match="exit code -6"):
        forked.run(os.abort)
