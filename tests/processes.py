"""Python functions, and whole recipes, in processes of their own: one or several, to be waited for or killed.

They are forked from a server that has imported torch and transformers already, and so start in milliseconds. Many small
jobs share one group of processes: see `in_turn`.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from multiprocessing import connection
from pathlib import Path

import device

RECIPES = Path(__file__).parent.parent / "recipes"

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([
    "mmssl.hub.export", "mmssl.evaluation.image_text", "mmssl.data.sources",  # and what jobs import beside them:
    "accelerate", "datasets", "pytest", "torch._dynamo", "transformers.models.clip.modeling_clip",
])  # fmt: skip
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the server, and what it forks, inherits it
device.prepare()


class Processes:
    """`world` processes that call target(*args, **kwargs), as `accelerate launch` would start them; what they print is
    in `log`."""

    def __init__(self, target: Callable, *args, log: Path, world: int = 1, **kwargs) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.log = log
        call = partial(target, *args, **kwargs)
        if world > 1 and not device.USE_CPU and target is not _each:
            call = partial(_meet, call)
        self.all = [_server.Process(target=_call, args=(call, rank, world, port, log)) for rank in range(world)]
        for process in self.all:
            process.start()

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.all)

    def send(self, number: int) -> None:
        """A signal to every process and its children, as a scheduler does it."""
        for process in self.all:
            if process.is_alive():
                for send in (os.killpg, os.kill):  # it alone, if it has not begun its group yet
                    with suppress(ProcessLookupError):  # it has just ended
                        send(process.pid, number)
                        break

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float = 120) -> list[int]:
        """Exit codes; negative where a signal ended the process."""
        for process in self.all:
            process.join(timeout)
            assert process.exitcode is not None, f"still running after {timeout} s:\n{self.output}"
        return [process.exitcode for process in self.all]

    def succeed(self, timeout: float = 120) -> str:
        codes = self.wait(timeout)
        assert not any(codes), f"exit codes {codes}:\n{self.output}"
        return self.output

    @property
    def output(self) -> str:
        return self.log.read_text()


def in_turn(jobs: dict[str, Callable[[], None]], folder: Path, world: int = 2, patience: int = 60) -> dict[str, str]:
    """Call every job on the same `world` processes, one after another, each in a process group and with a seed of its
    own. Returns how each failed, with what it printed; "" where it did not.

    A failure does not touch the other jobs. Where one ends its processes, or is not done after `patience` seconds, the
    jobs after it get new ones. Names must do as file names; folder: empty.
    """
    faults: dict[str, str] = {}
    while left := {name: job for name, job in jobs.items() if name not in faults}:
        processes = Processes(_each, left, folder, patience, log=folder / "log.txt", world=world)
        while processes.alive and not any(process.exitcode for process in processes.all):
            connection.wait([process.sentinel for process in processes.all if process.is_alive()], timeout=1)
        codes = [process.exitcode for process in processes.all]
        processes.kill()  # the others would wait for the one that has ended
        for name in left:
            said, ends = ([folder / f"{name}.{rank}.{kind}" for rank in range(world)] for kind in ("log", "end"))
            complete = all(end.exists() for end in ends)
            failures = [end.read_text() for end in ends if end.exists()] + [f"exit codes {codes}"] * (not complete)
            printed = [f"process {rank} printed:\n{log.read_text()}" for rank, log in enumerate(said) if log.exists()]
            faults[name] = "\n".join([*filter(None, failures), *printed]) if any(failures) else ""
            if not complete:
                break
    return faults


def sharded(job: Callable, *given, **flags) -> None:
    """The job, as `accelerate launch --use_fsdp --fsdp_version 2` starts it."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    try:
        job(*given, **flags)
    finally:
        del os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_VERSION"]


def recipe(name: str, *flags: str) -> None:
    """A recipe, as its command line runs it."""
    sys.argv = [str(RECIPES / f"{name}.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


def at_home(home: Path, name: str, *flags) -> None:
    """A recipe whose built-in data and caches are in `home`."""
    os.environ["MMSSL_HOME"] = str(home)
    recipe(name, *map(str, flags))


def _call(target: Callable, rank: int, world: int, port: int, log: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of data workers: as in a process started by hand
    os.setsid()  # a process group of its own, to be signalled with its data workers
    _print_to(log)
    device.prepare()
    if device.USE_CPU:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target()


def _meet(target: Callable[[], None]) -> None:
    """Call it in a group over gloo: NCCL refuses two processes on one GPU. accelerate takes the group that there is,
    and gives the GPUs out in turn."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    target()


def _each(jobs: dict[str, Callable[[], None]], folder: Path, patience: int) -> None:
    """What each of the processes of `in_turn` does."""
    import torch.distributed as dist
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import set_seed

    rank, world, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    store = dist.TCPStore("127.0.0.1", port, world, is_master=rank == 0, timeout=timedelta(seconds=patience))
    for name, job in jobs.items():
        _print_to(folder / f"{name}.{rank}.log")
        faulthandler.dump_traceback_later(patience, exit=True)
        set_seed(0)
        dist.init_process_group("gloo", store=dist.PrefixStore(name, store), rank=rank, world_size=world)
        fault = ""
        try:
            job()
        except (Exception, SystemExit):
            fault = f"process {rank}: {traceback.format_exc()}"
        # closes the connections: a partner that waits for this process fails, instead of waiting on
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        faulthandler.cancel_dump_traceback_later()
        (folder / f"{name}.{rank}.end").write_text(fault)
    dist.init_process_group("gloo", store=dist.PrefixStore("", store), rank=rank, world_size=world)
    dist.barrier()  # process 0 holds the store: it must not leave first


def _print_to(file: Path) -> None:
    opened = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.close(opened)
