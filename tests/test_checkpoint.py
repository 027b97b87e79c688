"""A checkpoint holds everything, is whole or absent, and never a pickle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from device import accelerator
from safetensors.torch import load_file
from small import Small, adam
from torch import nn

from mmssl import durable
from mmssl.errors import BadInput
from mmssl.training import checkpoint
from mmssl.training.optim import adamw
from mmssl.training.output_dir import OutputDir


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    return tmp_path / "run" / "checkpoints"


def trained() -> tuple[Small, torch.optim.Optimizer]:
    method = Small()
    optimizer = adam(method)
    method(torch.randn(4, 6), torch.randn(4, 4)).loss.backward()
    optimizer.step()
    return method, optimizer


def save(directory: Path, step: int = 1, of=None) -> Path:
    method, optimizer = of or trained()
    checkpoint.save(directory, step, method, [optimizer], accelerator(), {"position": step})
    return directory / f"step_{step:08d}"


def test_load_gives_back_weights_buffers_moments_and_random_numbers(checkpoints):
    method, optimizer = trained()
    path = save(checkpoints, of=(method, optimizer))
    expected = torch.rand(3)
    other = Small()
    other_optimizer = adam(other)
    assert checkpoint.load(path, other, [other_optimizer], accelerator()) == {"position": 1}
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in method.state_dict().items())
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys() and len(ours) == 4  # the parameters without a gradient have none
    assert all(torch.equal(theirs[i][key], value) for i, state in ours.items() for key, value in state.items())


def test_a_convolution_in_channels_last_goes_on_with_its_own_moments(checkpoints):
    def convolution() -> tuple[nn.Module, torch.optim.Optimizer]:
        module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return module, adamw(module, 0.1)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(torch.arange(96.0).sin().view(1, 3, 4, 8)).square().mean().backward()
        optimizer.step()

    method, optimizer = convolution()
    step(method, optimizer)
    path = save(checkpoints, of=(method, optimizer))
    other, other_optimizer = convolution()
    checkpoint.load(path, other, [other_optimizer], accelerator())
    step(method, optimizer)
    step(other, other_optimizer)
    assert torch.equal(other.weight, method.weight)


def test_checkpoint_is_safetensors_and_json_only(checkpoints):
    path = save(checkpoints)
    names = {file.name for file in path.iterdir()}
    assert names == {"method.safetensors", "optimizer_0.safetensors", "state.json", "SHA256SUMS"}
    json.loads((path / "state.json").read_text())
    assert "student.0.weight/exp_avg" in load_file(path / "optimizer_0.safetensors")


def test_tied_weights_come_back_equal(checkpoints):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    tied, other = Tied(), Tied()
    path = save(checkpoints, of=(tied, torch.optim.SGD(tied.parameters(), 0.1)))
    checkpoint.load(path, other, [torch.optim.SGD(other.parameters(), 0.1)], accelerator())
    assert torch.equal(other.a.weight, tied.a.weight) and other.b.weight is other.a.weight


@pytest.mark.parametrize("file", ["method.safetensors", "optimizer_0.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("harm", ["truncated", "missing", "one bit flipped"])
def test_damage_is_found(checkpoints, file, harm):
    path = save(checkpoints)
    content = bytearray((path / file).read_bytes())
    assert checkpoint.damage(path) is None
    if harm == "truncated":
        (path / file).write_bytes(content[: len(content) // 2])
    elif harm == "missing":
        (path / file).unlink()
    else:
        content[len(content) // 3] ^= 1
        (path / file).write_bytes(content)
    fault = checkpoint.damage(path)
    assert fault is not None and (file in fault or file == "SHA256SUMS")  # whose fault looks like another file's


def test_a_file_that_cannot_be_read_is_damage(checkpoints, monkeypatch):
    path = save(checkpoints)

    def fail(file: Path) -> str:
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(checkpoint.durable, "sha256", fail)
    assert "cannot be read" in checkpoint.damage(path)


def test_prune_keeps_the_newest_and_nothing_from_after_them(checkpoints):
    for step in (1, 2, 3, 9):
        save(checkpoints, step)
    (checkpoints / "partial_00000004").mkdir()
    assert checkpoint.later(checkpoints, checkpoints / "step_00000002") == ["step_00000003", "step_00000009"]
    assert checkpoint.later(checkpoints, checkpoints.parent / "other/step_00000002") == []
    checkpoint.prune(checkpoints, step=3, keep=2)  # taken up again at 2, then saved at 3
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000002", "step_00000003"]


def test_prune_never_deletes_the_one_just_written_in_favour_of_a_damaged_later_one(checkpoints):
    good, damaged = save(checkpoints, 5), save(checkpoints, 8)
    (damaged / "SHA256SUMS").unlink()
    checkpoint.prune(checkpoints, step=5, keep=1)
    assert checkpoint.find("auto", checkpoints) == good


def test_checkpoint_of_another_model_is_refused_by_name(checkpoints):
    path, other = save(checkpoints), Small()
    other.student[0] = nn.Linear(6, 17)
    with pytest.raises(BadInput, match=r"another model: student.0.bias is \(16,\) there and \(17,\) here"):
        checkpoint.load(path, other, [adam(other)], accelerator())


def test_path_that_is_no_checkpoint_is_refused(checkpoints):
    with pytest.raises(BadInput, match="nowhere: no readable SHA256SUMS"):
        checkpoint.find(str(checkpoints / "nowhere"), checkpoints)
    assert checkpoint.find("auto", checkpoints) is None


def rewritten(path: Path, change) -> Path:
    """As another version might have written it: other content, with its checksum."""
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    files = sorted(file for file in path.iterdir() if file.name != "SHA256SUMS")
    (path / "SHA256SUMS").write_text("".join(f"{durable.sha256(file)}  {file.name}\n" for file in files))
    return path


def remove_optimizer(path: Path) -> None:
    (path / "optimizer_0.safetensors").unlink()
    rewritten(path, lambda state: None)


UNFIT = {
    "a missing optimizer file": (remove_optimizer, "optimizer_0.safetensors is missing"),
    "a random state of another form": (lambda p: rewritten(p, lambda s: s["random_states"][0].pop("numpy")), "numpy"),
    "a random state of another length": (
        lambda p: rewritten(p, lambda s: s["random_states"][0].update(torch="00ff")), "state.json cannot be read"
    ),
    "groups that are none": (lambda p: rewritten(p, lambda s: s.update(groups=[["a"]])), "optimizer groups"),
    "groups of another type": (lambda p: rewritten(p, lambda s: s.update(groups=3)), "state.json cannot be read"),
    "a list": (lambda p: (p / "state.json").write_text("[]") and rewritten(p, lambda s: None), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("harm", UNFIT)
def test_checkpoint_that_cannot_be_gone_back_to_is_named_and_the_one_before_it_taken(checkpoints, capsys, harm):
    good, bad = save(checkpoints, 1), save(checkpoints, 2)
    change, said = UNFIT[harm]
    change(bad)
    assert checkpoint.find("auto", checkpoints) == good
    assert said in capsys.readouterr().err
    with pytest.raises(BadInput, match=said):
        checkpoint.find(str(bad), checkpoints)


def test_checkpoint_of_another_optimizer_is_refused(checkpoints):
    path, other = save(checkpoints), Small()
    with pytest.raises(BadInput, match="of another optimizer than SGD, one with "):
        checkpoint.load(path, other, [torch.optim.SGD(other.parameters(), 0.1)], accelerator())


def test_folders_of_others_among_checkpoints_are_passed_over(checkpoints):
    path = save(checkpoints)
    (checkpoints / ".ipynb_checkpoints").mkdir()
    (path / ".ipynb_checkpoints").mkdir()
    assert checkpoint.find("auto", checkpoints) == path


def killed_save(checkpoints: Path) -> Path:
    """The folder of a save at step 2 that was killed while safetensors wrote."""
    partial = save(checkpoints, 1).parent / "partial_00000002"
    run = OutputDir(checkpoints.parent)
    run.register([partial / "method.safetensors"])
    partial.mkdir()
    (partial / ".tmpA1b2C3").write_bytes(b"half")
    return partial


@pytest.mark.parametrize("linked", ["", "run", "run/checkpoints"])
def test_the_temporary_file_of_a_killed_save_does_not_block_the_next_one(tmp_path, checkpoints, linked):
    if linked:  # to another disk
        (tmp_path / "disk").mkdir()
        (tmp_path / linked).parent.mkdir(exist_ok=True)
        (tmp_path / linked).symlink_to(tmp_path / "disk")
    partial = killed_save(checkpoints)
    save(checkpoints, 2)
    assert not partial.exists() and complete(checkpoints) == ["step_00000001", "step_00000002"]


def test_pruning_takes_the_temporary_file_of_a_killed_save_away(checkpoints):
    partial = killed_save(checkpoints)
    save(checkpoints, 3)
    checkpoint.prune(checkpoints, 3, keep=5)
    assert not partial.exists()


def test_a_temporary_file_where_the_run_wrote_nothing_stays(checkpoints):
    partial = save(checkpoints, 1).parent / "partial_00000002"
    partial.mkdir()
    (partial / ".tmpA1b2C3").write_bytes(b"of the user")
    with pytest.raises(BadInput, match=r"holds .tmpA1b2C3, which mmssl did not write"):
        save(checkpoints, 2)
    assert (partial / ".tmpA1b2C3").read_bytes() == b"of the user"


def complete(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoint.complete_checkpoints(checkpoints))
