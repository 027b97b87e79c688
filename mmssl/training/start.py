"""What comes before anything costly in a run: the processes meet, the output directory is checked, the seed is set."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable
from datetime import timedelta

import torch

from mmssl import progress
from mmssl.arguments import TrainArgs
from mmssl.device import best_device, cores, keep_freed_memory
from mmssl.errors import BadInput, first_line
from mmssl.training.output_dir import OutputDir

MEETING = "start it with `accelerate launch`, or unset MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK and LOCAL_RANK"


def start(args: TrainArgs) -> None:
    """Set up the processes, check the output directory and set the seed."""
    from accelerate import PartialState
    from accelerate.utils import set_seed

    progress.calm_libraries()
    _check_sharding(args)
    _refuse_environment()
    if args.full_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first matrix product
        torch.use_deterministic_algorithms(True, warn_only=True)  # a kernel that has no such form is named
        torch.backends.cudnn.benchmark = False  # it may choose another kernel in the resumed run
    try:
        # the other processes wait while one evaluates; NCCL's default timeout is ten minutes
        state = PartialState(cpu=best_device(args.use_cpu).type == "cpu", timeout=timedelta(hours=6))
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"the processes of this run did not find each other ({first_line(error)}): {MEETING}") from error
    if state.device.type == "cpu":
        _use_all_cores()
        keep_freed_memory()
    on_main_process(lambda: OutputDir(args.output_dir).check(args))
    atexit.register(state.destroy_process_group)
    set_seed(args.seed)  # equal on all processes: they must build equal weights


def _use_all_cores() -> None:
    """Undo `accelerate launch`'s default of one thread per process, which takes 1.4 times as long on two cores. Any
    other number in OMP_NUM_THREADS, and a process that was not launched by accelerate, is left as it is."""
    if os.environ.get("OMP_NUM_THREADS") == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _check_sharding(args: TrainArgs) -> None:
    """Raise BadInput if accelerate is set to split the model in another way than training/sharding.py does it."""

    def is_on(name: str) -> bool:
        return os.environ.get(name, "false").lower() == "true"

    for name in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if is_on(f"ACCELERATE_USE_{name}"):
            raise BadInput(
                f"accelerate is configured for {name}, which is not supported: launch with --multi_gpu or, for a model "
                "larger than a device, with --use_fsdp --fsdp_version 2"
            )
    if not is_on("ACCELERATE_USE_FSDP"):
        return
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise BadInput(f"accelerate is configured for FSDP {version}, but only FSDP 2 is supported: --fsdp_version 2")
    unsupported = {
        "OFFLOAD_PARAMS": "use more devices",
        "ACTIVATION_CHECKPOINTING": "use the recipe's --gradient_checkpointing",
    }
    for name, instead in unsupported.items():
        if is_on(f"FSDP_{name}"):
            raise BadInput(f"--fsdp_{name.lower()} is not supported: set it to false, and {instead}")
    if args.torch_compile in ("auto", "whole"):
        raise BadInput(f"--torch_compile {args.torch_compile} is not supported with --use_fsdp: leave one of them out")
    # otherwise transformers loads weights on the main process only, and leaves it to accelerate to send them
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def _refuse_environment() -> None:
    """Raise BadInput if a launcher's variables are invalid. Otherwise torch would try a wrong address for hours."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name, "0")
        if not value.isdecimal() or int(value) > 65535:
            raise BadInput(f"{name} is {value!r} in the environment, not a valid number: {MEETING}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (address := os.environ.get("MASTER_ADDR")):
        try:
            socket.getaddrinfo(address, None)
        except (OSError, UnicodeError) as error:
            raise BadInput(f"MASTER_ADDR is {address!r}, which cannot be resolved ({error}): {MEETING}") from error


def on_main_process(check: Callable[[], None]) -> None:
    """Run `check` on the main process. If it raises BadInput, all processes do: none may wait for one that has left."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    refused = None
    if PartialState().is_main_process:
        try:
            check()
        except BadInput as error:
            refused = error
    if message := broadcast_object_list([refused and str(refused)])[0]:
        raise refused or BadInput(message)
