"""The seam: what a method is, and what it hands back to the loop.

A method is an `nn.Module` that turns a batch into a loss. It knows nothing of devices, precision, optimizers,
checkpoints or logging; the loop knows nothing of the method beyond what is declared here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn


@dataclass
class Output:
    """What one batch gives.

    loss:         scalar, fp32: the mean over this batch, with a graph.
    metrics:      detached scalars, under the same names on every process; the loop averages them.
    features:     (batch, dim), detached: what the collapse monitor and probes look at.
    trivial_loss: the loss of a model that ignores its input (log of the number of candidates, unigram entropy, mean
                  image) on this very batch, a number or a detached scalar; drawn beside the loss, so that nobody
                  mistakes it for learning.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    trivial_loss: float | Tensor | None = None


class Method(nn.Module, ABC):
    """The only base class. Whatever must survive a resume is a parameter, a buffer or a submodule.

    Define `forward(**batch) -> Output`; or, where the loss compares the samples of a batch, `embed` and `loss`, which
    `forward` then joins and `steps.grad_cache` calls apart:

        embed(**batch) -> dict[str, Tensor]     one row per sample, each row a function of its own sample alone
        loss(**embeddings) -> Output            over the rows of all processes (see `distributed.gather`)
    """

    progress = 0.0  # share of the training done, in [0, 1); the loop sets it before each step
    couples_samples = False  # True where the loss compares samples of a batch, as in-batch negatives do
    unit = "samples"  # what the progress bar counts: "pairs", "images", "words"

    def forward(self, *, embed_only: bool = False, **batch: Tensor) -> Output | dict[str, Tensor]:
        """The output for a batch; with `embed_only`, its embeddings (distributed wrappers pass on forward alone)."""
        embeddings = self.embed(**batch)
        return embeddings if embed_only else self.loss(**embeddings)

    def start_epoch(self, epoch: int, accelerator: Accelerator, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Called before each epoch: re-cluster, re-label."""

    def after_backward(self) -> None:
        """Called between backward and the optimizer: freeze a head by dropping its gradient."""

    def after_step(self) -> None:
        """Called after the optimizer: move an EMA teacher, clamp a temperature."""

    @abstractmethod
    def save_pretrained(self, directory: str | Path) -> None:
        """Write the encoder, and nothing else, in the form that `from_pretrained` reads."""


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student for parameters; buffers are copied."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)
    for slow, fast in zip(teacher.buffers(), student.buffers(), strict=True):
        slow.copy_(fast)
