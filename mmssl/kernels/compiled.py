"""Compiled functions that are kept on disk: the seconds that LLVM takes are spent once, not in every process.

They lie in $NUMBA_CACHE_DIR; else in __pycache__ beside this file; where that cannot be written, in $MMSSL_HOME or the
cache of Hugging Face; where nothing can be written, the function is compiled for this process alone. numba's own
cache=True does the work. It does not see that another file which a function is made from has changed, or that bounds
are to be checked, and two processes that store code for two processors may mix these up. So each combination has a
folder of its own, and one process at a time fills it.
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

PATIENCE = 120  # seconds that one process waits for another one that compiles
OPTIONS = ("BOUNDSCHECK", "DEBUG_JIT", "DEBUGINFO_DEFAULT", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "CPU_NAME",
           "CPU_FEATURES")  # fmt: skip

_compiling = threading.Lock()


class Compiled:
    """A function that is compiled, or read from disk, for the types of the arguments of its first call. Later calls
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
                with FileLock(directory / "lock", timeout=PATIENCE):  # who comes second finds it done
                    return self._jit(types, directory)
            except Timeout:
                pass
            except Exception:  # a file that a full disk or a crash has cut, a lock that the file system refuses
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


def compiled(*modules: ModuleType) -> Callable[[Callable], Compiled]:
    """Decorator. modules: others that the function's code comes from, beside the file that it stands in."""
    return lambda function: Compiled(function, modules)


def _directory(files: list[str]) -> Path | None:
    """The folder for code from these files, for this processor and these options; None where none can be written."""
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
    """Never a folder that others may write to: what lies there is run."""
    from numba import config

    if config.CACHE_DIR:
        return [Path(config.CACHE_DIR)]
    home = Path(os.environ.get("MMSSL_HOME", Path(HF_HOME) / "mmssl")) / "kernels"
    return [home] if sys.dont_write_bytecode else [Path(__file__).with_name("__pycache__"), home]
