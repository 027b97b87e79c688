"""A simulated accelerator: what would fail or wait on a GPU does so on a machine without one.

A tensor of the device holds one of the CPU, which does the work. As on a GPU, it does not mix with tensors of the host,
and the host has to wait for what it wants to know of it. Begin it in a process of its own: autograd starts a thread for
a device, which does not outlive a fork, and torch offers the device to everyone who asks for an accelerator.

Not simulated: memory, precision, autocast, which operations are missing, and random numbers: they are those of the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils import backend_registration

NAME = "accel"
DEVICE = f"{NAME}:0"
BENEATH = ("torch", "accelerate", __name__)  # whose own lines are not reported

aten = torch.ops.aten
# the host gets a number, or a tensor whose size depends on values
WAITING = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}
JOINING = {"cat", "stack"}  # take not even a number of the host
# torch gives them their size only after they were made
MAKING = [
    aten.empty.memory_format, aten.empty_strided.default, aten.arange.default, aten.arange.start,
    aten.arange.start_step, aten.eye.default, aten.eye.m, aten.hann_window.default, aten.hann_window.periodic,
]  # fmt: skip
RECURRENT = [aten.lstm.input, aten.lstm.data, aten.gru.input, aten.gru.data]  # fused on a device, not on the CPU


class Event(NamedTuple):
    """An operation, and the innermost line above BENEATH that asked for it. module: "" in a backward pass."""

    operation: str
    module: str = ""
    function: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        """Without the line, which changes with the file."""
        return f"{self.module}.{self.function}" if self.module else "backward"

    def __str__(self) -> str:
        return f"{self.operation} in {self.place}, line {self.line}"


@dataclass
class Report:
    """waits: of the host for the device. copies: from the host to the device, for which the host waits as well."""

    waits: list[Event] = field(default_factory=list)
    copies: list[Event] = field(default_factory=list)


class OnDevice(Tensor):
    """A tensor of the device. inner: the one of the CPU."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, device=torch.device(DEVICE), **layout)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, *args, **(kwargs or {}))

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self, **_) -> str:
        return f"{self.inner} on {self.device}"


class _Module(backend_registration._DummyBackendModule):
    """What torch.cuda is for CUDA."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self) -> None:
        """The device has no generator."""


_registered: list[torch.library.Library] = []
_reports: list[Report] = []


def begin() -> torch.device:
    """The device, from now on and to the end of the process."""
    if not _registered:
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
        own, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
        for operation in MAKING:
            own.impl(operation, partial(_compute, operation), "PrivateUse1")
        for operation in RECURRENT:
            own.impl(operation, decomposition_table[operation], "AutogradPrivateUse1")
        own.impl("copy_", _copy, "PrivateUse1")
        others.fallback(_compute, "PrivateUse1")
        torch.__future__.set_swap_module_params_on_conversion(True)  # as on a GPU, tied weights stay one
        _registered.extend([own, others])
    return torch.device(DEVICE)


@contextmanager
def watched() -> Iterator[Report]:
    """Reports what happens inside, in all threads."""
    report = Report()
    _reports.append(report)
    try:
        yield report
    finally:
        _reports.remove(report)


def _compute(operation, *args, **kwargs):
    """The operation on the CPU."""
    name = operation._schema.name.removeprefix("aten::")
    if name == "copy_":
        return _copy(*args, **kwargs)
    if name == "_to_copy":
        return _to_copy(*args, **kwargs)
    parts = [part for x in (*args, *kwargs.values()) for part in (x if isinstance(x, (list, tuple)) else (x,))]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    changes = operation._schema.is_mutable
    _check(name, args, kwargs, tensors, changes)
    if _waits(name, args, kwargs):
        _note("waits", name)
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    result = operation(*_each(_inner, args), **{key: _each(_inner, value) for key, value in kwargs.items()})
    known = {id(t.inner): t for t in tensors if isinstance(t, OnDevice)} if changes else {}
    if any(t.shape != t.inner.shape for t in known.values()):
        raise NotImplementedError(f"{name} changes the shape of a tensor of {NAME}")
    return _each(lambda x: known[id(x)] if id(x) in known else _outer(x), result)


def _check(name: str, args: tuple, kwargs: dict, tensors: list[Tensor], changes: bool) -> None:
    """Raise where a GPU would: tensors of the host may only be numbers to compute with, or indices."""
    host = {id(t): t for t in tensors if not isinstance(t, OnDevice)}
    if name in INDEXING and isinstance(args[0], OnDevice):
        for index in args[1]:
            if host.pop(id(index), None) is not None:
                _note("copies", name)
    changed = id(args[0]) if changes and args else None
    if any(t.ndim or name in JOINING or i == changed for i, t in host.items()):
        raise RuntimeError(f"{name} got tensors of {NAME} and of the host")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{name} on {NAME} got a generator of the host")


def _waits(name: str, args: tuple, kwargs: dict) -> bool:
    if name == "multinomial":  # without replacement it checks its weights
        return len(args) < 3 or not args[2] or args[1] == 1
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in INDEXING:  # by a mask; a number written through a mask takes another way
        by_mask = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        return by_mask and ("put" not in name or args[2].numel() > 1)
    return name in WAITING


def _copy(to: Tensor, of: Tensor, non_blocking: bool = False) -> Tensor:
    if not isinstance(of, OnDevice):
        _note("copies", "copy_")
    elif not isinstance(to, OnDevice) and not non_blocking:
        _note("waits", "copy_")
    _inner(to).copy_(_inner(of))
    return to


def _to_copy(x: Tensor, *, device=None, non_blocking: bool = False, **kwargs) -> Tensor:
    to_host = device is not None and torch.device(device).type == "cpu"
    if not isinstance(x, OnDevice):
        _note("copies", "to")
    elif to_host and not non_blocking:
        _note("waits", "to")
    made = aten._to_copy.default(_inner(x), **kwargs, device=torch.device("cpu"))
    return made if to_host else OnDevice(made)


def _each(change: Callable, x):
    return type(x)(_each(change, part) for part in x) if type(x) in (list, tuple) else change(x)


def _inner(x):
    return x.inner if isinstance(x, OnDevice) else x


def _outer(x):
    return OnDevice(x) if isinstance(x, Tensor) else x


def _note(kind: str, operation: str) -> None:
    if not _reports:
        return
    frame = sys._getframe()
    while frame and (frame.f_code.co_name[0] == "<" or frame.f_globals["__name__"].split(".")[0] in BENEATH):
        frame = frame.f_back  # "<": a comprehension, which some versions of Python make a function
    where = (frame.f_globals["__name__"], frame.f_code.co_name, frame.f_lineno) if frame else ()
    for report in _reports:
        getattr(report, kind).append(Event(operation, *where))
