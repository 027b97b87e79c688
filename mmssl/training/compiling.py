"""--torch_compile: torch.compile for the layers of a method, so that their many small operations run as few large ones.

Layers are compiled one by one, not the method as a whole: those of one kind share what was compiled (half a minute on
a CPU; two seconds where torch still has it in its cache), and what cannot be compiled, such as the choice of a batch's
masked tokens, stays outside of them. Evaluations and what comes after the training run uncompiled: their batches have
other shapes, and each would be compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from mmssl.distributed import unwrap
from mmssl.errors import BadInput, first_line
from mmssl.method import Method
from mmssl.training import sharding, steps

if TYPE_CHECKING:
    from accelerate import Accelerator

NO, AUTO, LAYERS, WHOLE = "no", "auto", "layers", "whole"
WORTH = 1200.0  # seconds of training from which on `auto` tries: a gain of 5 % pays for what it costs
GAIN = 0.97  # part of a step's time above which it is no gain


def layers(method: nn.Module) -> list[nn.Module]:
    """The innermost of the modules that are in lists, as the layers of every transformer are."""
    listed = [layer for layer in sharding.layers(method) if [*layer.children()]]
    return [layer for layer in listed if not set(layer.modules()).intersection(set(listed) - {layer})]


def begin(method: Method, how: str) -> str | None:
    """Compile `how` much of the method, in place, when it is called next. Returns what to tell whoever waits for it."""
    if how == WHOLE:
        method.compile()
    if how == LAYERS:
        found = layers(method)
        if not found:
            raise BadInput(
                f"--torch_compile {LAYERS}: {type(method).__name__} has no list of layers; leave the flag out"
            )
        for layer in found:
            layer.forward = torch.compile(layer.forward)  # not the call: hooks (of FSDP2, of probes) stay outside
    return None if how == NO else "the first steps compile, which can take minutes where torch's cache has nothing"


def end(method: Method) -> None:
    """Undo `begin`."""
    method._compiled_call_impl = None
    for layer in layers(method):
        vars(layer).pop("forward", None)


def paused(how: str) -> AbstractContextManager:
    """Inside, everything runs uncompiled."""
    return nullcontext() if how == NO else torch.compiler.set_stance("force_eager")


def choose(
    step: Callable,
    method: nn.Module,
    micro_batches: Sequence[dict],
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    total: int,
) -> tuple[str, str]:
    """(LAYERS or NO, why): whichever took less time in a few steps, which are taken back. total: steps of the run."""
    from accelerate.utils import broadcast_object_list, gather_object

    bare = unwrap(method)

    def seconds() -> float:
        """Of one step: the same number on every process."""
        took = steps.rehearse(step, method, micro_batches, optimizers, accelerator, times=4)
        return broadcast_object_list([min(took[1:])])[0]

    plain = seconds()
    if plain * total < WORTH:
        return NO, f"not compiled: about {plain * total / 60:.0f} minutes of training are too few to pay for it"
    if not layers(bare):
        return NO, "not compiled: there is no list of layers"
    # one that fails on one process only must not leave the others waiting in a step
    if faults := [fault for fault in gather_object([_fault(accelerator.device)]) if fault]:
        return NO, f"not compiled: it failed with {faults[0]}"
    begin(bare, LAYERS)
    try:
        compiled = seconds()
    except Exception as error:  # torch's compiler, the C++ compiler and their surroundings raise many kinds
        end(bare)
        return NO, f"not compiled: it failed with {_named(error)}"
    end(bare)
    times = f"{1000 * compiled:.0f} ms a step instead of {1000 * plain:.0f}"
    return (LAYERS, f"layers compiled: {times}") if compiled < GAIN * plain else (NO, f"not compiled: {times}")


def _fault(device: torch.device) -> str | None:
    """Why nothing can be compiled on this process, if so: no C++ compiler, a cache that cannot be written to."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:
        return _named(error)
    return None


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
