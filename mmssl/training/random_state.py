"""Save and restore the random number generators of a process: torch's as tensors, or all as plain values for JSON."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def of_torch(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Torch's states on the CPU and on `device` (None if that is the CPU)."""
    on_cpu = device.type == "cpu"
    return torch.get_rng_state(), None if on_cpu else torch.get_device_module(device).get_rng_state()


def set_torch(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Restore a state that `of_torch` gave. The device's state is ignored on a CPU."""
    torch.set_rng_state(state[0])
    if device.type != "cpu" and state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])


def of_everything(device: torch.device) -> dict:
    """The states of Python, NumPy and torch, as values that JSON can hold."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    names = ("torch", "device")
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        **{n: None if s is None else s.numpy().tobytes().hex() for n, s in zip(names, of_torch(device), strict=True)},
    }


def set_everything(state: dict, device: torch.device) -> None:
    """Restore a state that `of_everything` gave, also after it was stored as JSON."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    set_torch(tuple(_bytes(state[name]) if state[name] else None for name in ("torch", "device")), device)


def check(state: dict, device: torch.device) -> None:
    """Raise what the generators raise if `set_everything` could not restore `state`. Changes no generator in use."""
    version, internal, gauss = state["python"]
    random.Random().setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.RandomState().set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.Generator().set_state(_bytes(state["torch"]))
    if device.type != "cpu" and state["device"]:
        torch.Generator(device).set_state(_bytes(state["device"]))


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
