"""Several processes are one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import Processes
from safetensors.torch import load_file, save_file
from small import arguments
from torch import nn

from mmssl import distributed
from mmssl.distributed import gather, has_batch_norm, rank, share_batch_norm, world_size
from mmssl.errors import BadInput
from mmssl.training.start import start

SCRIPT = """
import sys
from accelerate import PartialState
from mmssl.arguments import TrainArgs
from mmssl.distributed import rank, sharded, world_size
from mmssl.training.start import start
start(TrainArgs(output_dir=sys.argv[1], use_cpu=True))
with open(f"{sys.argv[2]}/{rank()}", "w") as file:  # a line each on one pipe could run together
    print(f"process {rank()} of {world_size()}, {PartialState().num_processes} by accelerate, {sharded()}", file=file)
"""


@pytest.mark.parametrize("kind, split", [
    ("--multi_gpu", False),
    pytest.param("--use_fsdp --fsdp_version 2", True, marks=pytest.mark.slow),
])  # fmt: skip
def test_accelerate_launch_starts_what_was_asked_for(kind, split, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = f"accelerate.commands.launch {kind} --num_processes 2 --num_machines 1 --mixed_precision no"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--dynamo_backend", "no", script, tmp_path / "out", tmp_path],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for i in (0, 1):
        assert (tmp_path / str(i)).read_text() == f"process {i} of 2, 2 by accelerate, {split}\n"


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


def transposed(place: Path) -> None:
    start(arguments(place))
    mine = (torch.arange(12.0).view(2, 3, 2) + 12 * rank()).requires_grad_()
    weights = torch.arange(24.0).view(2, 3, 4)
    (gather(mine).permute(2, 1, 0).contiguous() * weights).sum().backward()  # the gradient arrives with other strides
    save_file({"gradient": mine.grad}, place / f"{rank()}.safetensors")


def test_a_gradient_that_is_not_contiguous_keeps_its_order(tmp_path):
    Processes(transposed, tmp_path, log=tmp_path / "log.txt", world=2).succeed()
    expected = 2 * torch.arange(24.0).view(2, 3, 4).permute(2, 1, 0)  # the sum over two equal processes
    for i in (0, 1):
        found = load_file(tmp_path / f"{i}.safetensors")["gradient"]
        torch.testing.assert_close(found, expected[2 * i : 2 * i + 2])


def with_batch_norm() -> nn.Module:
    """Of two and of four dimensions, one without weights and one that averages over all batches."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, affine=False), nn.Flatten(),
        nn.Linear(64, 5), nn.BatchNorm1d(5, momentum=None),
    ).double()  # fmt: skip


def steps_of(network: nn.Module, rows: slice) -> dict[str, torch.Tensor]:
    """Gradients, outputs and buffers after two passes over these rows of two batches; gradients averaged over
    processes, as the wrapper does it."""
    network.train()
    for seed in (1, 2):
        x = 30 + 2 * torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        output = network(x[rows])
        output.mul(torch.arange(1, 6)).sin().sum(1).mean().backward()
    if world_size() > 1:
        for p in network.parameters():
            torch.distributed.all_reduce(p.grad)
            p.grad /= world_size()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
    return gradients | dict(network.named_buffers()) | {"output": output.detach()}


def on_half_of_the_batch(place: Path) -> None:
    start(arguments(place))
    network = with_batch_norm()
    share_batch_norm(network)
    save_file(steps_of(network, slice(4 * rank(), 4 * rank() + 4)), place / f"{rank()}.safetensors")


def test_batch_norm_of_two_processes_is_that_of_one_on_the_whole_batch(tmp_path):
    Processes(on_half_of_the_batch, tmp_path, log=tmp_path / "log.txt", world=2).succeed()
    whole, halves = steps_of(with_batch_norm(), slice(None)), [load_file(tmp_path / f"{i}.safetensors") for i in (0, 1)]
    output = whole.pop("output")
    torch.testing.assert_close(torch.cat([half.pop("output") for half in halves]), output)
    for half in halves:
        assert half.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(half[name], value, msg=lambda m, n=name: f"{n}: {m}")


def test_a_shared_batch_norm_alone_and_in_evaluation_is_torchs_own_under_the_same_names():
    ours, theirs, x = with_batch_norm(), with_batch_norm(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    share_batch_norm(ours)
    assert type(ours[1]) is distributed.BatchNorm2d and type(ours[6]) is distributed.BatchNorm1d
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))


@pytest.mark.parametrize("part", [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3)])
def test_batch_norms_couple_rows_in_training_and_other_norms_never(part):
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.GroupNorm(1, 3))
    assert not has_batch_norm(network)
    network.append(part)
    assert has_batch_norm(network) and not has_batch_norm(network.eval())
    share_batch_norm(network)
    assert has_batch_norm(network.train())


def test_a_batch_norm_names_the_flag_where_a_batch_has_one_value_per_channel():
    norm = nn.Sequential(nn.BatchNorm1d(3))
    share_batch_norm(norm)
    with pytest.raises(BadInput, match="a batch of one: raise --per_device_train_batch_size"):
        norm(torch.zeros(1, 3))
    norm.eval()(torch.zeros(1, 3))
