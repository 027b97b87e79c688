"""Everything a run needs to go on as if it had never stopped, written atomically, without a pickle.

    checkpoints/step_00000500/
        method.safetensors       parameters and buffers
        optimizer_0.safetensors  one per optimizer: its tensors, by parameter name
        buffers_1.safetensors    buffers of process 1 that differ from those of process 0 (a recurrent state), if any
        state.json               step, position, optimizer settings, random states of every process
        SHA256SUMS               of all these, written last; `sha256sum -c SHA256SUMS` reads it too

A folder appears under its final name only when all of it is on disk. With several machines, the output directory must
be one that all of them share.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mmssl import bounded_json, durable
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import say
from mmssl.training import random_state
from mmssl.training.output_dir import OF_A_CHECKPOINT, OutputDir

if TYPE_CHECKING:
    from accelerate import Accelerator


CPU = torch.device("cpu")
FROM_FLAGS = ("lr", "initial_lr", "weight_decay", "betas")  # of an optimizer: what a resumed run may set anew
# flags that do not touch what the weights become
HARMLESS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_steps", "eval_steps", "save_steps",
    "save_total_limit", "report_to", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "probe_dataset",
}  # fmt: skip


class NonFinite(BadInput):
    """The loss, its gradient or a weight is no longer a number."""


def save(
    directory: Path,
    step: int,
    method: nn.Module,
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    progress: dict,
) -> None:
    """Write directory/step_<step> from all processes (every one must call). `progress` is kept as JSON.

    Raises BadInput where the disk fails (full, read-only), NonFinite where a weight is not finite. What was there
    before stays whole.
    """
    from accelerate.utils import gather_object

    for name, parameter in method.named_parameters():
        if not parameter.isfinite().all():
            raise NonFinite(f"{name} is not finite after step {step}; not saved. {last_good(directory)}")
    final, partial = directory / f"step_{step:08d}", directory / f"partial_{step:08d}"
    run = OutputDir(directory.parent)
    names = ["method.safetensors", "state.json", "SHA256SUMS"]
    names += [f"optimizer_{i}.safetensors" for i in range(len(optimizers))]
    names += [f"buffers_{i}.safetensors" for i in range(accelerator.num_processes)]
    own_buffers = _differing_buffers(method)
    random_states = gather_object([random_state.of_everything(accelerator.device)])

    def write_shared() -> None:
        run.remove([partial])  # of a save that was cut short
        run.register(place / name for place in (partial, final) for name in names)
        partial.mkdir(parents=True, exist_ok=True)
        if foreign := [path.name for path in partial.iterdir()]:
            raise BadInput(f"{partial} holds {', '.join(foreign)}, which no run wrote: move it away")
        durable.save_tensors(partial / "method.safetensors", method.state_dict())
        for i, optimizer in enumerate(optimizers):
            durable.save_tensors(partial / f"optimizer_{i}.safetensors", _tensors(method, optimizer))

    def write_own() -> None:
        if own_buffers:
            durable.save_tensors(partial / f"buffers_{accelerator.process_index}.safetensors", own_buffers)

    def complete() -> None:
        state = {"step": step, "progress": progress, "random_states": random_states}
        state["groups"] = [[_values(group) for group in optimizer.param_groups] for optimizer in optimizers]
        durable.write(partial / "state.json", json.dumps(state))
        sums = "".join(f"{durable.sha256(file)}  {file.name}\n" for file in sorted(partial.iterdir()))
        durable.write(partial / "SHA256SUMS", sums)
        if final.exists():  # of the run before it was taken up again at an earlier step
            run.remove([final])
            if final.exists():
                foreign = ", ".join(path.name for path in final.iterdir())
                raise BadInput(f"it holds {foreign}, which no run wrote: move it away")
            run.register(final / name for name in names)
        partial.rename(final)
        durable.sync_directory(directory)

    for write, by_all in ((write_shared, False), (write_own, True), (complete, False)):
        failure = ""
        try:
            if by_all or accelerator.is_main_process:
                write()
        except (OSError, SafetensorError, BadInput) as error:  # a full disk is one of the first two
            failure = str(error)
        if failures := [f for f in gather_object([failure]) if f]:
            if accelerator.is_main_process:
                with suppress(OSError):
                    run.remove([partial])
            raise BadInput(
                f"checkpoint {final} could not be written: {failures[0]}. {last_good(directory)} Free space in that "
                "place, then continue with --resume_from_checkpoint auto."
            )


def _fault(state: object, path: Path, device: torch.device, check: Callable[[dict], object]) -> str | None:
    """What of state.json could not be gone back to, beyond its checksum: another version may have written it."""
    try:
        check(state["progress"])
        for i, groups in enumerate(state["groups"]):
            if not all(isinstance(group, dict) for group in groups):
                raise BadInput("groups of an optimizer are not what this version writes")
            if not (path / f"optimizer_{i}.safetensors").is_file():
                return f"optimizer_{i}.safetensors is missing"
        for of_process in state["random_states"]:
            random_state.check(of_process, device)
    except BadInput as error:
        return f"state.json: {error}"
    except Exception as error:  # whatever a field of another type makes of itself
        return f"state.json cannot be read: {type(error).__name__}: {first_line(error)}"
    return None


def load(path: Path, method: nn.Module, optimizers: Sequence[Optimizer], accelerator: Accelerator) -> dict:
    """Restore method, optimizers and random states from `path`; returns the `progress` that was saved."""
    state = bounded_json.read(path / "state.json")
    own = path / f"buffers_{accelerator.process_index}.safetensors"
    try:
        weights = load_file(path / "method.safetensors") | (load_file(own) if own.exists() else {})
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read: {first_line(error)}") from error
    _check_names(path, method, weights)
    method.load_state_dict(weights)
    if len(state["groups"]) != len(optimizers):
        raise BadInput(f"{path} holds {len(state['groups'])} optimizers, the run {len(optimizers)}: another method")
    for i, (optimizer, groups) in enumerate(zip(optimizers, state["groups"], strict=True)):
        try:
            _restore(method, optimizer, load_file(path / f"optimizer_{i}.safetensors"), groups)
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            raise BadInput(f"{path}: the state of optimizer {i} does not fit ({first_line(error)})") from error
    if accelerator.process_index < len(state["random_states"]):
        random_state.set_everything(state["random_states"][accelerator.process_index], accelerator.device)
    return state["progress"]


def find(
    resume: str | None, directory: Path, device: torch.device = CPU, check: Callable[[dict], object] = dict
) -> Path | None:
    """The checkpoint to resume from: "auto" is the newest whole one in `directory`, if any; else `resume` itself.

    A damaged one is named on stderr, and the one before it is taken; a damaged path given by name, or nothing but
    damaged ones, is an error. check: raises where the `progress` that was saved is not of the form that is needed.
    """
    if resume is None:
        return None
    if resume != "auto":
        if (fault := damage(Path(resume), device, check)) is not None:
            raise BadInput(f"--resume_from_checkpoint {resume}: {fault}")
        return Path(resume)
    written = complete_checkpoints(directory)
    for path in reversed(written):
        if (fault := damage(path, device, check)) is None:
            return path
        say(f"checkpoint {path} is damaged ({fault}); trying the one before it", sys.stderr)
    if written:
        raise BadInput(
            f"every checkpoint in {directory} is damaged; begin anew with --overwrite_output_dir, without "
            "--resume_from_checkpoint"
        )
    return None


def damage(path: Path, device: torch.device = CPU, check: Callable[[dict], object] = dict) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where every file has its recorded checksum and state.json
    holds what `load` and `check` need."""
    try:
        sums = (path / "SHA256SUMS").read_text()
    except (OSError, UnicodeDecodeError):
        return "no readable SHA256SUMS: not a checkpoint, or not written to the end"
    recorded = dict(reversed(line.split("  ", 1)) for line in sums.split("\n") if "  " in line)
    present = {file.name for pattern in OF_A_CHECKPOINT for file in path.glob(pattern)} - {"SHA256SUMS"}
    for name in sorted({"state.json", "method.safetensors"} | present | recorded.keys()):
        if not (path / name).is_file():
            return f"{name} is missing"
        if durable.sha256(path / name) != recorded.get(name):
            return f"{name} is not what was written"
    try:
        state = bounded_json.read(path / "state.json")
    except ValueError as error:
        return f"state.json is no JSON: {first_line(error)}"
    return _fault(state, path, device, check)


def surroundings(accelerator: Accelerator) -> dict[str, int | str]:
    """What besides the flags decides the bits of a run."""
    kind = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type
    software = f"torch {torch.__version__} on {kind}, {accelerator.mixed_precision.replace('no', 'fp32')}"
    return {"processes": accelerator.num_processes, "software": software}


def differences(progress: dict, args, accelerator: Accelerator, streaming: bool) -> list[str]:
    """What makes a resumed run another one than the one that was begun, in sentences.

    args: the TrainArgs of now. streaming: the order of the data depends on the numbers of processes and workers.
    """
    before, now, workers = progress["args"], asdict(args), "dataloader_num_workers"
    changed = [k for k in now if before.get(k) != now[k] and k not in HARMLESS and (k != workers or streaming)]
    said = []
    if changed:
        listed = ", ".join(f"{k} {before.get(k)} -> {now[k]}" for k in changed)
        said.append(f"resumed with other flags: {listed}; the run is no longer the one that was begun")
    here = surroundings(accelerator)
    there = here | progress
    if there["software"] != here["software"]:
        said.append(f"resumed with {here['software']} instead of {there['software']}: the weights agree to rounding")
    if there["processes"] != here["processes"]:
        said.append(f"resumed on another number of processes: {there['processes']} -> {here['processes']}; " + (
            "a stream is dealt out anew: some of this epoch's samples come twice and some not at all"
            if streaming else
            "with an equal global batch the samples of each step stay the same and the weights agree to rounding, but "
            "each process draws other dropout and augmentation"
        ))  # fmt: skip
    return said


def last_good(directory: Path) -> str:
    """A sentence for those who stop."""
    kept = complete_checkpoints(directory)
    return f"The last good checkpoint is {kept[-1]}." if kept else "There is no checkpoint before it."


def complete_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints that were written to the end, oldest first."""
    return sorted(path for path in directory.glob("step_*") if path.is_dir())


def prune(directory: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` up to `step`, the one just written; what an interrupted save left; and what lies
    after `step`: checkpoints too damaged to resume from, or those of a run that was taken up again before them. Only
    files that the run wrote."""
    checkpoints = complete_checkpoints(directory)
    later = [path for path in checkpoints if path.name > f"step_{step:08d}"]
    kept = [path for path in checkpoints if path not in later][-keep:]
    old = {path for path in [*checkpoints, *directory.glob("partial_*")] if path not in kept}
    OutputDir(directory.parent).remove([*old, directory / f"partial_{step:08d}"])  # that one is in the manifest alone


def _parameter_names(method: nn.Module, optimizer: Optimizer) -> list[str]:
    names = {parameter: name for name, parameter in method.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _tensors(method: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """{"parameter name/exp_avg": tensor}; parameters that never had a gradient have none."""
    names, state = _parameter_names(method, optimizer), optimizer.state_dict()["state"]
    return {f"{names[i]}/{key}": value for i, entry in state.items() for key, value in entry.items()}


def _values(group: dict) -> dict:
    return {key: value for key, value in group.items() if value is None or isinstance(value, (bool, int, float, str))}


def _restore(method: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict]) -> None:
    position = {name: i for i, name in enumerate(_parameter_names(method, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        if parameter in position:  # else it has been frozen since
            state.setdefault(position[parameter], {})[key] = tensor
    now = optimizer.state_dict()["param_groups"]
    for new, old in zip(now, groups, strict=False):
        if other := sorted(old.keys() - new.keys()):
            raise BadInput(
                f"the checkpoint is of another optimizer than {type(optimizer).__name__}, one with {', '.join(other)}. "
                "Resume with the optimizer, and the torch, of the run that wrote it."
            )
    if len(groups) == len(now):
        now = [new | old | {k: new[k] for k in FROM_FLAGS if k in new} for new, old in zip(now, groups, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": now})


def _differing_buffers(module: nn.Module) -> dict[str, Tensor]:
    """This process's buffers that are not, bit for bit, those of process 0."""
    from accelerate.utils import gather_object

    saved = module.state_dict().keys()
    buffers = {name: b.detach().cpu().contiguous() for name, b in module.named_buffers() if name in saved}
    digests = {name: hashlib.sha256(_bytes(b)).hexdigest() for name, b in buffers.items()}
    first = gather_object([digests])[0]
    return {name: b for name, b in buffers.items() if digests[name] != first[name]}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _check_names(path: Path, module: nn.Module, weights: dict[str, Tensor]) -> None:
    here = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in weights.items()}
    if here != there:
        name = min(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
        raise BadInput(
            f"{path} is of another model: {name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} "
            "here. Resume with the flags of the run that wrote it."
        )
