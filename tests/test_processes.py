"""Jobs that share their processes do not share their failures."""

from __future__ import annotations

import os
import re
import time
from functools import partial
from pathlib import Path

import torch
from processes import in_turn
from small import arguments

from mmssl.distributed import rank
from mmssl.training.start import start


def job(place: Path, fails: str = "", where: int = 0) -> None:
    start(arguments(place))
    if fails and rank() == where:
        print("about to fail")
        if fails == "raises":
            raise ValueError("a reason")
        if fails == "dies":
            os._exit(3)
        if fails == "stalls":
            time.sleep(1000)
    torch.distributed.all_reduce(torch.ones(1))
    (place.parent / f"{place.name}.{rank()}.value").write_text(str(torch.rand(1)))


def test_a_job_that_raises_on_one_process_fails_alone_and_does_not_keep_the_other_waiting(tmp_path):
    jobs = {
        "before": partial(job, tmp_path / "before"),
        "first": partial(job, tmp_path / "first", "raises", 0),
        "second": partial(job, tmp_path / "second", "raises", 1),
        "after": partial(job, tmp_path / "after"),
    }
    faults = in_turn(jobs, tmp_path)
    assert faults["before"] == faults["after"] == ""
    for name, where in (("first", 0), ("second", 1)):
        assert f"process {where}: Traceback" in faults[name] and "ValueError: a reason" in faults[name]
        assert "about to fail" in faults[name] and "exit codes" not in faults[name]
    values = [(tmp_path / f"{name}.{i}.value").read_text() for name in ("before", "after") for i in (0, 1)]
    assert len(set(values)) == 1, "each job begins with the same random numbers"


def test_jobs_after_one_that_ends_its_processes_get_new_ones(tmp_path):
    jobs = {"dies": partial(job, tmp_path / "dies", "dies", 1), "after": partial(job, tmp_path / "after")}
    faults = in_turn(jobs, tmp_path)
    assert re.search(r"exit codes \[.*3\]", faults["dies"]) and faults["after"] == ""


def test_a_job_that_stalls_is_ended_and_says_where_it_stood(tmp_path):
    fault = in_turn({"stalls": partial(job, tmp_path / "stalls", "stalls", 1)}, tmp_path, patience=5)["stalls"]
    assert "Timeout (0:00:05)" in fault and "processes.py" in fault
