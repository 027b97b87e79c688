"""A function in a process of its own that starts in a moment: it is forked from one that has imported what it needs.

What ends the process (a crash, full memory) ends only that function. The process that is forked does nothing but
import, because threads of a library do not survive a fork.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmssl.arguments import collect_seldom
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# what a run imports late, where the listing of recipes has not imported it already
MESSAGE = 10_000  # characters at most: a pipe holds 64 KB, and nobody reads it before the process has ended
LATE = ("datasets", "matplotlib.pyplot", "scipy.stats", "soundfile", "sklearn.linear_model", "sklearn.model_selection",
        "sklearn.pipeline", "sklearn.preprocessing", "transformers.models.auto.modeling_auto",
        "transformers.models.resnet.modeling_resnet", "transformers.models.vit.modeling_vit",
        "transformers.models.vit.image_processing_pil_vit", "mmssl.pretrain", "mmssl.hub.export", "mmssl.kernels.views",
        "mmssl.models.own", "mmssl.evaluation.downstream.transfer")  # fmt: skip


class Failed(RuntimeError):
    """The function did not return; the message is one line that says why."""


def run(function: Callable, *given) -> None:
    """Call `function`, a function of a module, in a new process, and wait for it. If this process ends, so does the
    new one. Raises Failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*(name for name in sys.modules if name.startswith("mmssl.")), *LATE])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, *given))
    process.start()
    sender.close()
    try:
        process.join()
    except BaseException:  # a signal: a training saves what it has
        process.terminate()
        process.join()
        raise
    if process.exitcode:
        try:
            raise Failed(receiver.recv())
        except EOFError:
            raise Failed(f"the process ended with exit code {process.exitcode}") from None


def _call(sender: Connection, function: Callable, *given) -> None:
    collect_seldom()
    gc.freeze()  # the objects of the imports
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function(*given)
    except Exception as error:
        if not isinstance(error, BadInput):
            traceback.print_exc()
        kind = "" if isinstance(error, BadInput) else f"{type(error).__name__}: "
        sender.send(f"{kind}{first_line(error)}"[:MESSAGE])
        sys.exit(1)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
