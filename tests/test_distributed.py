"""Several processes are one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from processes import Processes
from small import arguments

from mmssl.distributed import gather, rank, world_size
from mmssl.training.loop import start

SCRIPT = """
import sys
from accelerate import PartialState
from mmssl.arguments import TrainArgs
from mmssl.distributed import rank, world_size
from mmssl.training.loop import start
start(TrainArgs(output_dir=sys.argv[1], use_cpu=True))
with open(f"{sys.argv[2]}/{rank()}", "w") as file:  # a line each on one pipe could run together
    print(f"process {rank()} of {world_size()}, {PartialState().num_processes} by accelerate", file=file)
"""


def test_accelerate_launch_starts_as_many_processes_as_were_asked_for(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--dynamo_backend", "no", script, tmp_path / "out", tmp_path],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for i in (0, 1):
        assert (tmp_path / str(i)).read_text() == f"process {i} of 2, 2 by accelerate\n"


def gathered(place: Path) -> None:
    start(arguments(place))
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.5]], requires_grad=True)
    x = torch.arange(8.0).view(4, 2) / 8
    mine = x[2 * rank() : 2 * rank() + 2] @ weight
    everyone = gather(mine)
    (mine @ everyone.T).logsumexp(1).mean().backward()
    torch.distributed.all_reduce(weight.grad)
    patience = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
    found = {"world": world_size(), "rows": everyone.tolist(), "gradient": (weight.grad / world_size()).tolist()}
    found["hours"] = patience.total_seconds() / 3600
    (place / f"{rank()}.json").write_text(json.dumps(found))


def test_gathered_rows_are_in_rank_order_and_give_the_gradient_of_one_process(tmp_path):
    Processes(gathered, tmp_path, log=tmp_path / "log.txt", world=2).succeed()
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.5]], requires_grad=True)
    z = (torch.arange(8.0).view(4, 2) / 8) @ weight
    (z @ z.T).logsumexp(1).mean().backward()
    for i in (0, 1):
        found = json.loads((tmp_path / f"{i}.json").read_text())
        assert found["world"] == 2
        torch.testing.assert_close(torch.tensor(found["rows"]), z.detach())
        torch.testing.assert_close(torch.tensor(found["gradient"]), weight.grad)
        assert found["hours"] == 6  # NCCL's own ten minutes are less than an evaluation on one process may take
