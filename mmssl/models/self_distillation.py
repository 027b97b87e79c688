"""Self-distillation into prototypes: a student matches a teacher's distribution over learned prototypes.

Caron et al. 2021 (DINO), arXiv:2104.14294, section 3. The teacher's outputs are centred, which keeps one prototype from
taking all images, and sharpened by a low temperature, which keeps all prototypes from being equally likely.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.distributed import gather, rank
from mmssl.models import heads, memory


class PrototypeHead(nn.Module):
    """Three linear layers, then the cosine with each prototype: (..., width) -> (..., prototypes), in [-1, 1]."""

    def __init__(self, width: int, hidden_dim: int, bottleneck_dim: int, prototypes: int, norm: str = "none") -> None:
        super().__init__()
        memory.refuse_too_large(
            prototypes * bottleneck_dim, f"{prototypes:,} prototypes of {bottleneck_dim:,} dimensions"
        )
        self.mlp = heads.mlp([width, hidden_dim, hidden_dim, bottleneck_dim], norm)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck_dim))
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.mlp(features), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Centre(nn.Module):
    """A moving average of the teacher's mean output over all processes. `add` outputs during a step, then call `move`
    once: the centre does not change within a step, so that micro-batches have the same one."""

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        for name, size in (("value", prototypes), ("total", prototypes), ("count", 1)):
            self.register_buffer(name, torch.zeros(size))

    @torch.no_grad()
    def add(self, outputs: Tensor) -> None:
        """outputs: (rows, prototypes)."""
        self.total += outputs.float().sum(0)
        self.count += len(outputs)

    @torch.no_grad()
    def move(self) -> None:
        total, count = gather(self.total[None]).sum(0), gather(self.count[None]).sum(0)
        self.value.lerp_(total / count.clamp(min=1), (1 - self.momentum) * (count > 0).float())
        self.total.zero_()
        self.count.zero_()


def sharpened(outputs: Tensor, centre: Centre, temperature: float) -> Tensor:
    """The teacher's distributions, without gradient. outputs: (..., prototypes)."""
    return ((outputs.detach().float() - centre.value) / temperature).softmax(-1)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, beside: Tensor | None = None) -> Tensor:
    """Assign rows to prototypes so that all prototypes get equally many: Sinkhorn-Knopp over the rows of all processes
    (SwAV, Caron et al. 2020, arXiv:2006.09882, section 3.1 and appendix A).

    scores: (rows, prototypes). epsilon: the lower, the closer to a hard assignment. Returns (rows, prototypes) fp32, of
    this process's rows; each sums to 1. With 0 iterations, a softmax. beside: (other rows, prototypes), equal on all
    processes: scores that are assigned together with these.
    """
    log_q = gather(scores.float()) / epsilon
    if beside is not None:
        log_q = torch.cat([log_q, beside.float() / epsilon])
    for _ in range(iterations):
        log_q = log_q.log_softmax(0)  # each prototype gets the same mass
        log_q = log_q.log_softmax(1)  # each row has the same mass
    own = log_q[rank() * len(scores) :][: len(scores)]
    return own.softmax(1)


def cross_entropy(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """(...) of the student's outputs (..., prototypes) against the teacher's distributions (..., prototypes)."""
    return -(teacher * (student.float() / temperature).log_softmax(-1)).sum(-1)


def between_views(targets: Sequence[Tensor], outputs: Sequence[Tensor], temperature: float) -> Tensor:
    """The mean cross entropy over all pairs of a teacher's view and another view of the student.

    targets: of the large views, each (batch, prototypes), distributions. outputs: of all views, each (batch,
    prototypes), the large ones first.
    """
    pairs = [(target, output) for i, target in enumerate(targets) for j, output in enumerate(outputs) if i != j]
    return torch.stack([cross_entropy(target, output, temperature).mean() for target, output in pairs]).mean()


def entropy(distribution: Tensor) -> Tensor:
    """(..., prototypes) -> (...), in nats."""
    return torch.special.entr(distribution).sum(-1)


def warmed_up(first: float, last: float, progress: float, until: float) -> float:
    """A temperature that grows linearly from `first` to `last` while the fraction `until` of the training is done."""
    return last if progress >= until else first + (last - first) * progress / until
