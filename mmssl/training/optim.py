"""Parameter groups, optimizers, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import AdamW, Optimizer

if TYPE_CHECKING:
    from mmssl.arguments import TrainArgs
    from mmssl.method import Method


def adamw(
    module: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    constant: nn.Module | None = None,
    rates: Mapping[nn.Module, float] | None = None,
) -> AdamW:
    """AdamW over the trainable parameters, fused if the device supports it (CPU and CUDA do).

    constant: a part of the module whose learning rate no schedule changes.
    rates:    peak learning rates of parts, or of the module itself, instead.
    """
    fused = all(p.device.type in ("cpu", "cuda") for p in module.parameters())
    apart = [(part, {"lr": rate}) for part, rate in (rates or {}).items()]
    if constant:
        apart.append((constant, {"constant": True}))
    taken = {p for part, _ in apart for p in part.parameters()}
    groups = parameter_groups([p for p in module.parameters() if p not in taken], weight_decay)
    for part, settings in apart:
        groups += [group | settings for group in parameter_groups(part.parameters(), weight_decay)]
    return AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def from_args(
    module: nn.Module,
    args: TrainArgs,
    constant: nn.Module | None = None,
    rates: Mapping[nn.Module, float] | None = None,
) -> AdamW:
    """AdamW with the settings of the flags. constant, rates: see `adamw`."""
    betas = args.adam_beta1, args.adam_beta2
    return adamw(module, args.learning_rate, args.weight_decay, betas, constant, rates)


def of_players(method: Method, args: TrainArgs, *rates: float) -> list[AdamW]:
    """One for each of `method.players()`, with a learning rate of its own and the other settings of the flags."""
    return [from_args(player, args, rates={player: rate}) for player, rate in zip(method.players(), rates, strict=True)]


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    """Two groups: matrices have weight decay; biases, norms and scalars (fewer than two dimensions) have none."""
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def schedule(step: int, max_steps: int, warmup_steps: float, kind: str = "cosine") -> float:
    """The factor on the peak learning rate at `step` (counted from 0): linear warm-up, then `kind`.

    kind: "cosine" or "linear", both to zero, or "constant". warmup_steps below 1 is a fraction of max_steps.
    """
    warmup = warmup_steps if warmup_steps >= 1 else warmup_steps * max_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, max_steps - warmup)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if kind == "linear" else 1.0


def set_learning_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group's rate to `factor` times its initial rate, unless the group is constant."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            initial = group.setdefault("initial_lr", group["lr"])
            group["lr"] = initial if group.get("constant") else initial * factor
