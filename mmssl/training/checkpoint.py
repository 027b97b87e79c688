"""Checkpoints: everything a run needs to continue as if it had never stopped, written atomically, without pickle.

    checkpoints/step_00000500/
        method.safetensors       parameters and buffers
        optimizer_0.safetensors  one per optimizer: its tensors, by parameter name
        buffers_1.safetensors    buffers of process 1 that differ from those of process 0 (a recurrent state), if any
        state.json               step, data position, optimizer settings, random states of every process
        SHA256SUMS               checksums of the other files, written last; check with `sha256sum -c SHA256SUMS`

A folder gets its final name only when all of it is on disk. With several machines, the output directory must be on a
file system that all of them share.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mmssl import bounded_json, durable
from mmssl.distributed import sharded
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import say
from mmssl.training import random_state, sharding
from mmssl.training.output_dir import OF_A_CHECKPOINT, OutputDir

if TYPE_CHECKING:
    from accelerate import Accelerator


CPU = torch.device("cpu")
TEMPORARY = ".tmp??????"  # what safetensors writes before it gives the file its name
FROM_FLAGS = ("lr", "initial_lr", "weight_decay", "betas")  # optimizer settings that a resumed run may change
# flags that do not affect the final weights (image_cache: if all images can be decoded; else their number differs)
HARMLESS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_steps", "eval_steps", "save_steps",
    "save_total_limit", "report_to", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "probe_dataset",
    "dataloader_num_workers", "image_cache",
}  # fmt: skip


class NonFinite(BadInput):
    """The loss, its gradient or a weight is NaN or infinite."""


def save(
    directory: Path,
    step: int,
    method: nn.Module,
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    progress: dict,
) -> None:
    """Write directory/step_<step>. All processes must call it. `progress` is stored as JSON.

    Raises BadInput if the disk fails (full, read-only), NonFinite if a weight is not finite. Earlier checkpoints stay
    intact.
    """
    from accelerate.utils import gather_object

    directory = directory.absolute()  # OutputDir takes a relative path as one inside of the run
    bad = [name for name, p in method.named_parameters() if not sharding.local(p).isfinite().all()]
    if bad := sum(gather_object([bad]), []):  # of a sharded method, perhaps in the part of one process
        raise NonFinite(f"{bad[0]} is not finite after step {step}; not saved. {last_good(directory)}")
    final, partial = directory / f"step_{step:08d}", directory / f"partial_{step:08d}"
    run = OutputDir(directory.parent)
    names = ["method.safetensors", "state.json", "SHA256SUMS"]
    names += [f"optimizer_{i}.safetensors" for i in range(len(optimizers))]
    names += [f"buffers_{i}.safetensors" for i in range(accelerator.num_processes)]
    own_buffers = _differing_buffers(method)
    random_states = gather_object([random_state.of_everything(accelerator.device)])

    def begin() -> None:
        _remove(run, [partial])  # left by a save that was interrupted
        partial.mkdir(parents=True, exist_ok=True)
        if foreign := [path.name for path in partial.iterdir()]:
            raise BadInput(f"{partial} holds {', '.join(foreign)}, which mmssl did not write: move it away")
        # after that check: in a folder with registered files a temporary file counts as the run's
        run.register(place / name for place in (partial, final) for name in names)

    def write_shared(name: str, tensors: dict[str, Tensor]) -> None:
        whole = sharding.gathered(tensors)
        if accelerator.is_main_process:
            durable.save_tensors(partial / name, whole)

    def write_own() -> None:
        if own_buffers:
            durable.save_tensors(partial / f"buffers_{accelerator.process_index}.safetensors", own_buffers)

    def complete() -> None:
        state = {"step": step, "progress": progress, "random_states": random_states}
        state["groups"] = [[_values(group) for group in optimizer.param_groups] for optimizer in optimizers]
        durable.write(partial / "state.json", json.dumps(state))
        sums = "".join(f"{durable.sha256(file)}  {file.name}\n" for file in sorted(partial.iterdir()))
        durable.write(partial / "SHA256SUMS", sums)
        if final.exists():  # written before the run was resumed from an earlier step
            run.remove([final])
            if final.exists():
                foreign = ", ".join(path.name for path in final.iterdir())
                raise BadInput(f"it holds {foreign}, which mmssl did not write: move it away")
            run.register(final / name for name in names)
        partial.rename(final)
        durable.sync_directory(directory)

    def attempt(write: Callable[..., None], *given, by_all: bool = False) -> None:
        failure = ""
        try:
            if by_all or accelerator.is_main_process:
                write(*given)
        except (OSError, SafetensorError, BadInput) as error:  # a full disk raises either of the first two
            failure = str(error)
        if failures := [f for f in gather_object([failure]) if f]:
            if accelerator.is_main_process:
                with suppress(OSError, BadInput):
                    run.remove([partial])
            raise BadInput(
                f"checkpoint {final} could not be written: {failures[0]}. {last_good(directory)} Mend that, then "
                "continue with --resume_from_checkpoint auto."
            )

    attempt(begin)
    attempt(write_shared, "method.safetensors", method.state_dict(), by_all=True)
    for i, optimizer in enumerate(optimizers):
        attempt(write_shared, f"optimizer_{i}.safetensors", _tensors(method, optimizer), by_all=True)
    attempt(write_own, by_all=True)
    attempt(complete)


def _fault(state: object, path: Path, device: torch.device, check: Callable[[dict], object]) -> str | None:
    """What prevents resuming from state.json, or None. Its checksum is right, but another version may have written
    it."""
    try:
        check(state["progress"])
        for i, groups in enumerate(state["groups"]):
            if not all(isinstance(group, dict) for group in groups):
                raise BadInput("optimizer groups are not in this version's format")
            if not (path / f"optimizer_{i}.safetensors").is_file():
                return f"optimizer_{i}.safetensors is missing"
        for of_process in state["random_states"]:
            random_state.check(of_process, device)
    except BadInput as error:
        return f"state.json: {error}"
    except Exception as error:  # a field of an unexpected type
        return f"state.json cannot be read: {type(error).__name__}: {first_line(error)}"
    return None


def load(path: Path, method: nn.Module, optimizers: Sequence[Optimizer], accelerator: Accelerator) -> dict:
    """Restore method, optimizers and random states from `path`; returns the `progress` that was saved."""
    state = bounded_json.read(path / "state.json")
    own = path / f"buffers_{accelerator.process_index}.safetensors"
    try:
        weights = _read(path / "method.safetensors", method.state_dict().get)
        weights |= load_file(own) if own.exists() else {}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read: {first_line(error)}") from error
    _check_names(path, method, weights)
    method.load_state_dict(weights)
    if len(state["groups"]) != len(optimizers):
        raise BadInput(
            f"{path} holds {len(state['groups'])} optimizers, this run has {len(optimizers)}: it is of another method"
        )
    parameters = dict(method.named_parameters())
    for i, (optimizer, groups) in enumerate(zip(optimizers, state["groups"], strict=True)):
        try:
            tensors = _read(path / f"optimizer_{i}.safetensors", lambda name: parameters.get(name.rpartition("/")[0]))
            _restore(method, optimizer, tensors, groups)
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            raise BadInput(f"{path}: the state of optimizer {i} does not fit ({first_line(error)})") from error
    if accelerator.process_index < len(state["random_states"]):
        random_state.set_everything(state["random_states"][accelerator.process_index], accelerator.device)
    return state["progress"]


def find(
    resume: str | None, directory: Path, device: torch.device = CPU, check: Callable[[dict], object] = dict
) -> Path | None:
    """The checkpoint to resume from: for "auto", the newest intact one in `directory` or None; else `resume` itself.

    With "auto", a damaged checkpoint is reported on stderr and the one before it is tried. Raises BadInput if all are
    damaged, or if a path given by name is. check: raises if the saved `progress` does not have the form it needs.
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
            f"every checkpoint in {directory} is damaged; start again with --overwrite_output_dir, without "
            "--resume_from_checkpoint"
        )
    return None


def damage(path: Path, device: torch.device = CPU, check: Callable[[dict], object] = dict) -> str | None:
    """What is wrong with a checkpoint, in a few words. None if every file has its recorded checksum and state.json
    holds what `load` and `check` need."""
    listed = path / "SHA256SUMS"
    try:
        sums = listed.read_text() if listed.is_file() else None  # not of a named pipe, which waits for ever
    except (OSError, UnicodeDecodeError):
        sums = None
    if sums is None:
        return "no readable SHA256SUMS: not a checkpoint, or an incomplete one"
    recorded = dict(reversed(line.split("  ", 1)) for line in sums.split("\n") if "  " in line)
    present = {file.name for pattern in OF_A_CHECKPOINT for file in path.glob(pattern)} - {"SHA256SUMS"}
    for name in sorted({"state.json", "method.safetensors"} | present | recorded.keys()):
        if not (path / name).is_file():
            return f"{name} is missing"
        try:
            if durable.sha256(path / name) != recorded.get(name):
                return f"{name} does not have the checksum recorded for it"
        except OSError as error:
            return f"{name} cannot be read: {first_line(error)}"
    try:
        state = bounded_json.read(path / "state.json")
    except ValueError as error:
        return f"state.json is not JSON: {first_line(error)}"
    return _fault(state, path, device, check)


def surroundings(accelerator: Accelerator, samples: int) -> dict[str, int | str]:
    """What besides the flags decides the exact weights of a run. samples: of the training data."""
    kind = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type
    software = f"torch {torch.__version__} on {kind}, {accelerator.mixed_precision.replace('no', 'fp32')}"
    software += ", sharded" * sharded()
    return {"processes": accelerator.num_processes, "software": software, "samples": samples}


def differences(progress: dict, args, accelerator: Accelerator, samples: int) -> list[str]:
    """Sentences that say how the resumed run differs from the one that wrote the checkpoint. args: the current
    TrainArgs. samples: of the current training data."""
    before, now = progress["args"], asdict(args)
    if isinstance(whole := before.get("torch_compile"), bool):  # of earlier versions
        before = before | {"torch_compile": "whole" if whole else "no"}
    changed = [k for k in now if before.get(k) != now[k] and k not in HARMLESS]
    sentences = []
    if changed:
        listed = ", ".join(f"{k} {before.get(k)} -> {now[k]}" for k in changed)
        sentences.append(f"resumed with other flags: {listed}; the result differs from that of an uninterrupted run")
    here = surroundings(accelerator, samples)
    saved = here | progress  # earlier versions kept no number of samples
    if saved["samples"] != samples:
        corrupt = ", or corrupt images were left out and are now replaced, or the reverse (see --image_cache)"
        sentences.append(
            f"resumed on {samples} training samples instead of {saved['samples']}: the data changed"
            f"{corrupt * ('image_cache' in now)}; the result differs from that of an uninterrupted run"
        )
    if saved["software"] != here["software"]:
        sentences.append(
            f"resumed with {here['software']} instead of {saved['software']}: the weights agree only up to rounding"
        )
    if saved["processes"] != here["processes"]:
        sentences.append(
            f"resumed on another number of processes: {saved['processes']} -> {here['processes']}; with an equal "
            "global batch the samples of each step stay the same and the weights agree up to rounding, but each "
            "process draws other dropout and augmentation"
        )
    return sentences


def last_good(directory: Path) -> str:
    """A sentence that names the newest checkpoint, for error messages."""
    kept = complete_checkpoints(directory)
    return f"The last good checkpoint is {kept[-1]}." if kept else "There is no checkpoint before it."


def complete_checkpoints(directory: Path) -> list[Path]:
    """Completely written checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step_*") if path.is_dir())


def prune(directory: Path, step: int, keep: int) -> None:
    """Keep the newest `keep` checkpoints up to `step`, the one just written. Delete older ones, the remains of an
    interrupted save, and later ones: they are damaged, or the run was resumed from an earlier step. Only files that the
    run wrote are deleted."""
    directory = directory.absolute()  # as in save
    checkpoints = complete_checkpoints(directory)
    later = [path for path in checkpoints if path.name > f"step_{step:08d}"]
    kept = [path for path in checkpoints if path not in later][-keep:]
    old = {path for path in [*checkpoints, *directory.glob("partial_*")] if path not in kept}
    _remove(OutputDir(directory.parent), [*old, directory / f"partial_{step:08d}"])  # the last is only in the manifest


def later(directory: Path, found: Path) -> list[str]:
    """The complete checkpoints after `found`, which the next save of a run that resumes from it deletes."""
    ours = found.absolute().parent == directory.absolute()
    return [path.name for path in complete_checkpoints(directory) if ours and path.name > found.name]


def _remove(run: OutputDir, folders: Iterable[Path]) -> None:
    """Delete what the run wrote in `folders`; also the temporary file that safetensors leaves there when it is killed
    while it writes. Its name is random, so it counts as the run's if the run registered files in that folder."""
    own = {(run.path / name).parent for name in run.files()}
    for folder in folders:
        place = run.path / folder.parent.name / folder.name  # not resolved: the checkpoints may be a link
        if folder.name.startswith("partial_") and place in own:
            found = [file for file in place.glob(TEMPORARY) if file.is_file() and not file.is_symlink()]
            if found:
                run.adopt(found)
    run.remove(folders)


def _read(file: Path, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """The tensors of a file; of those for which `like` gives a tensor that is split over processes, the own part."""
    with safe_open(file, "pt") as opened:
        return {name: sharding.own_part(opened.get_tensor(name), like(name)) for name in opened.keys()}  # noqa: SIM118


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
        if parameter in position:  # otherwise it was frozen in the meantime
            state.setdefault(position[parameter], {})[key] = tensor
    now = optimizer.state_dict()["param_groups"]
    for new, old in zip(now, groups, strict=False):
        if other := sorted(old.keys() - new.keys()):
            raise BadInput(
                f"the checkpoint is of another optimizer than {type(optimizer).__name__}, one with {', '.join(other)}. "
                "Resume with the optimizer and the torch version of the run that wrote it."
            )
    if len(groups) == len(now):
        now = [new | old | {k: new[k] for k in FROM_FLAGS if k in new} for new, old in zip(now, groups, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": now})
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            # in the parameter's order in memory (channels_last), as torch made it: fused optimizers go by that order
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _differing_buffers(module: nn.Module) -> dict[str, Tensor]:
    """This process's buffers that differ in any bit from those of process 0."""
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
