"""Python functions, and whole recipes, in processes of their own: one or several, to be waited for or killed.

They are forked from a server that has imported torch and transformers already, and so start in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["mmssl.hub.export", "mmssl.evaluation.image_text", "mmssl.data.sources"])
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the server, and what it forks, inherits it


class Processes:
    """`world` processes that call target(*args, **kwargs), as `accelerate launch` would start them; what they print is
    in `log`."""

    def __init__(self, target: Callable, *args, log: Path, world: int = 1, **kwargs) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.log = log
        call = partial(target, *args, **kwargs)
        self.all = [_server.Process(target=_call, args=(call, rank, world, port, str(log))) for rank in range(world)]
        for process in self.all:
            process.start()

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.all)

    def send(self, number: int) -> None:
        """A signal to every process and its children, as a scheduler does it."""
        for process in self.all:
            if process.is_alive():
                os.killpg(process.pid, number)

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


def recipe(name: str, *flags: str) -> None:
    """A recipe, as its command line runs it."""
    sys.argv = [str(RECIPES / f"{name}.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _call(target: Callable, rank: int, world: int, port: int, log: str) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of data workers: as in a process started by hand
    os.setsid()  # a process group of its own, to be signalled with its data workers
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target()
