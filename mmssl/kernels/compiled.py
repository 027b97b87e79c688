"""Compiled functions, cached on disk, so that LLVM's seconds of compilation are spent once and not in every process.

The cache is in $NUMBA_CACHE_DIR; else in __pycache__ next to this file; if that is not writable, in $MMSSL_HOME or the
Hugging Face cache; if nothing is writable, the function is compiled for this process only. The cache is numba's
cache=True. numba does not notice when another file that the function uses changes, or when bounds checking is switched
on, and two processes that store code for two processors may mix it up. So each combination has its own folder, which
one process at a time fills. numba runs what it reads, and damaged machine code ends the process: only files with the
checksums that were recorded when they were written are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import llvmlite
import llvmlite.binding as llvm
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME

from mmssl.durable import sha256

SUMS = "SHA256SUMS"
PATIENCE = 120  # seconds that a process waits for another one to compile
OPTIONS = ("BOUNDSCHECK", "DEBUG_JIT", "DEBUGINFO_DEFAULT", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "CPU_NAME",
           "CPU_FEATURES")  # fmt: skip

_compiling = threading.Lock()


class Compiled:
    """A function that is compiled, or read from disk, at its first call, for the types of that call's arguments. Calls
    with other types raise TypeError."""

    def __init__(self, function: Callable, modules: tuple[ModuleType, ...]) -> None:
        self.py_func, self.files = function, [function.__code__.co_filename, *(module.__file__ for module in modules)]
        self._ready: Callable | None = None

    def __call__(self, *arguments):
        import numba

        if self._ready is None:
            with _compiling:
                if self._ready is None:
                    self._ready = self._compile(tuple(map(numba.typeof, arguments)))
        return self._ready(*arguments)

    def _compile(self, types: tuple) -> Callable:
        if directory := _directory(self.files):
            try:
                with FileLock(directory / "lock", timeout=PATIENCE):  # the second process finds it compiled
                    sums = directory / SUMS
                    if not sums.is_file() or sums.read_text() != _checksums(directory):
                        _clear(directory)
                    ready = self._jit(types, directory)
                    sums.write_text(_checksums(directory))
                    return ready
            except Timeout:
                pass
            except Exception:  # a file cut off by a full disk or a crash, or a file system without locks
                shutil.rmtree(directory, ignore_errors=True)
        return self._jit(types, None)

    def _jit(self, types: tuple, directory: Path | None) -> Callable:
        from numba import config, njit

        before = config.CACHE_DIR
        try:
            config.CACHE_DIR = str(directory or "")
            jitted = njit(nogil=True, cache=directory is not None)(self.py_func)
        finally:
            config.CACHE_DIR = before
        jitted.compile(types)
        jitted.disable_compile()
        return jitted


def _checksums(directory: Path) -> str:
    return "".join(f"{sha256(file)}  {file.relative_to(directory)}\n" for file in sorted(directory.rglob("*.nb[ci]")))


def _clear(directory: Path) -> None:
    for file in directory.rglob("*.nb[ci]"):
        file.unlink()


def compiled(*modules: ModuleType) -> Callable[[Callable], Compiled]:
    """Decorator. modules: other modules whose code the function uses."""
    return lambda function: Compiled(function, modules)


def _directory(files: list[str]) -> Path | None:
    """The folder for code from these files, for this processor and these options; None if none is writable."""
    import numba
    from numba import config

    digest = hashlib.sha256()
    processor = llvm.get_default_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    options = [getattr(config, name, None) for name in OPTIONS]
    digest.update(repr((numba.__version__, llvmlite.__version__, sys.version, processor, options)).encode())
    for file in files:
        digest.update(Path(file).read_bytes())
    for place in _places():
        directory = place / f"mmssl-{digest.hexdigest()[:16]}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError:
            continue
        return directory
    return None


def _places() -> list[Path]:
    """Candidates for the cache. Never a folder that others can write to: the code in it is run."""
    from numba import config

    if config.CACHE_DIR:
        return [Path(config.CACHE_DIR)]
    home = Path(os.environ.get("MMSSL_HOME") or Path(HF_HOME) / "mmssl").expanduser() / "kernels"
    return [home] if sys.dont_write_bytecode else [Path(__file__).with_name("__pycache__"), home]
