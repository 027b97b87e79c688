"""Step functions: each takes one optimizer step. It gets all micro-batches of the step and calls backward itself.

Each returns one Output for the whole step: mean loss and metrics, and the features of the last micro-batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmssl.distributed import has_batch_norm, unwrap, whole_tensor
from mmssl.errors import BadInput
from mmssl.method import Method, Output
from mmssl.training import optim, random_state

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmssl.arguments import TrainArgs

Batch = dict[str, Tensor]


def standard(
    method: Method,
    micro_batches: Sequence[Batch],
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    max_grad_norm: float,
) -> Output:
    """Run forward and backward for each micro-batch, accumulate the gradients, update once. Where the loss compares the
    samples of a batch, several micro-batches are one batch: see `grad_cache`."""
    if unwrap(method).couples_samples and len(micro_batches) > 1:
        return grad_cache(method, micro_batches, optimizers, accelerator, max_grad_norm)
    _refuse_batch_norm(method, len(micro_batches))
    outputs = []
    for i, batch in enumerate(micro_batches):
        with no_sync_before_last(method, i, len(micro_batches), accelerator):
            output = method(**batch)
            accelerator.backward(output.loss / len(micro_batches))
        output.loss = output.loss.detach()
        outputs.append(output)
    output = _mean(outputs)
    output.metrics["grad_norm"] = update(method, optimizers, accelerator, max_grad_norm)
    return output


def grad_cache(
    method: Method,
    micro_batches: Sequence[Batch],
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    max_grad_norm: float,
) -> Output:
    """The exact gradient of one loss over all micro-batches, in the memory of one (Gao et al. 2021, arXiv:2101.06983).

    1. Embed every micro-batch without a graph.  2. Take the loss over all embeddings, and its gradient with respect to
    them and to the parameters that the loss itself uses (a temperature).  3. Embed each micro-batch again, with a graph
    and the same random draws, and backpropagate its part of that gradient. Costs one extra forward pass.
    """
    _refuse_batch_norm(method, len(micro_batches))
    draws, cached = [], []
    with torch.no_grad():
        for batch in micro_batches:
            draws.append(random_state.of_torch(accelerator.device))
            cached.append(method(embed_only=True, **batch))
    whole = {name: torch.cat([chunk[name] for chunk in cached]) for name in cached[0]}
    embeddings = {
        name: rows.requires_grad_() for name, rows in whole.items() if rows.is_floating_point()
    }  # not lengths

    bare = unwrap(method)
    output = bare.loss(**whole)
    used = [p for p in bare.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(output.loss, [*embeddings.values(), *used], allow_unused=True)
    chunks = {
        name: gradient.split([len(chunk[name]) for chunk in cached])
        for name, gradient in zip(embeddings, gradients, strict=False)
        if gradient is not None  # None: features that only the monitor uses
    }
    output.loss = output.loss.detach()

    for i, batch in enumerate(micro_batches):
        with no_sync_before_last(method, i, len(micro_batches), accelerator):
            random_state.set_torch(draws[i], accelerator.device)
            again = method(embed_only=True, **batch)
            # the gradient of <embedding, constant g> with respect to the weights is the chain rule below the embedding
            surrogate = sum((again[name] * parts[i]).sum() for name, parts in chunks.items())
            if i == len(micro_batches) - 1:
                surrogate = surrogate + sum(
                    (p * g).sum() for p, g in zip(used, gradients[len(embeddings) :], strict=True) if g is not None
                )
            accelerator.backward(surrogate)
    output.metrics["grad_norm"] = update(method, optimizers, accelerator, max_grad_norm)
    return output


def alternating(
    method: Method,
    micro_batches: Sequence[Batch],
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    max_grad_norm: float,
    reported: int = 0,
) -> Output:
    """Players with an optimizer each take turns, in the order of `optimizers`: the discriminator, then the generator
    against the new discriminator (Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1).

    `method(phase=i, **batch)` returns player i's Output; the parameters of the other players get no gradient. Each
    player's gradient is averaged over processes, clipped and, if not finite, skipped on its own: a player that has
    moved before is not moved back. reported: the player whose loss and features the step returns, with the metrics of
    all.
    """
    n = len(micro_batches)
    _refuse_batch_norm(method, n)
    players = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    bare, outputs, norms = unwrap(method), [], []
    for phase, optimizer in enumerate(optimizers):
        with _only(players, phase):
            parts = []
            for batch in micro_batches:
                # DDP would wait for gradients of every player
                with accelerator.no_sync(method):
                    output = method(phase=phase, **batch)
                    accelerator.backward(output.loss / n)
                output.loss = output.loss.detach()
                parts.append(output)
        outputs.append(_mean(parts))
        _average_gradients(players[phase], accelerator)
        bare.after_backward()
        own = Skippable([optimizer]) if isinstance(optimizers, Skippable) else [optimizer]
        norm, skipped = _move(players[phase], own, accelerator, max_grad_norm)
        norms.append(norm)
        if skipped:
            break
    else:
        bare.after_step()
    output = outputs[min(reported, len(outputs) - 1)]
    output.metrics = {name: value for each in outputs for name, value in each.metrics.items()}
    output.metrics["grad_norm"] = torch.stack(norms).norm()
    return output


@contextmanager
def _only(players: Sequence[Sequence[nn.Parameter]], phase: int) -> Iterator[None]:
    """Inside, no player but one has gradients."""
    others = [p for i, player in enumerate(players) if i != phase for p in player if p.requires_grad]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def _average_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace each gradient by its mean over processes, in one exchange."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if accelerator.num_processes == 1 or not gradients:
        return
    mean = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def in_place(
    method: Method,
    micro_batches: Sequence[Batch],
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    max_grad_norm: float,
) -> Output:
    """The method updates its own parameters in `train_on(**batch, learning_rate) -> Output`: no graph, no gradient. The
    optimizer only holds the learning rate. Several processes start and end a step with equal tensors: the changes of
    all processes are summed, and those of parameters multiplied by `share(processes, micro_batches)`."""
    bare, processes = unwrap(method), accelerator.num_processes
    rate = optimizers[0].param_groups[0]["lr"]
    state = [tensor for tensor in (*bare.parameters(), *bare.buffers()) if tensor.is_floating_point()]
    before = [tensor.detach().clone() for tensor in state] if processes > 1 else []
    output = _mean([bare.train_on(**batch, learning_rate=rate) for batch in micro_batches])
    bare.after_step()
    if processes > 1:
        share = bare.share(processes, micro_batches)
        with torch.no_grad():
            for tensor, start in zip(state, before, strict=True):
                learned = accelerator.reduce((tensor - start).contiguous(), "sum")
                tensor.copy_(start + (learned * share if tensor.requires_grad else learned))
    return output


def rehearse(
    step: Callable[..., Output],
    method: Method,
    micro_batches: Sequence[Batch],
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    times: int = 1,
) -> list[float]:
    """Take some steps and undo them. Returns the seconds of each.

    DDP changes its bucket layout after the first backward pass of a process, and the last bit of a sum over three or
    more processes depends on the layout, so a resumed run would start with another one."""
    stateful = [unwrap(method), *optimizers]
    before = [copy.deepcopy(part.state_dict()) for part in stateful]
    method.train()
    seconds = []
    try:
        for _ in range(times):
            began = time.perf_counter()
            step(method, micro_batches, optimizers, accelerator, 0.0).loss.item()  # waits for the device
            seconds.append(time.perf_counter() - began)
    finally:
        for part, state in zip(stateful, before, strict=True):
            part.load_state_dict(state)
    return seconds


class Skippable(tuple[Optimizer, ...]):
    """Optimizers whose update is skipped when the gradient is not finite."""


def skip_non_finite(step: Callable[..., Output]) -> Callable[..., Output]:
    """`step`, except that a non-finite gradient leaves weights, moments and buffers unchanged. Waits for the device at
    every step, and copies the buffers."""

    def careful(method, micro_batches, optimizers, accelerator, max_grad_norm) -> Output:
        before = [buffer.clone() for buffer in method.buffers()]
        output = step(method, micro_batches, Skippable(optimizers), accelerator, max_grad_norm)
        if "grad_norm" in output.metrics and not output.metrics["grad_norm"].isfinite():
            for buffer, value in zip(method.buffers(), before, strict=True):
                buffer.copy_(value)
        return output

    return careful


def update(method: Method, optimizers: Sequence[Optimizer], accelerator: Accelerator, max_grad_norm: float) -> Tensor:
    """Clip, step, clear, between the method's two hooks. Returns the gradient's norm before clipping."""
    bare = unwrap(method)
    bare.after_backward()
    norm, skipped = _move(method.parameters(), optimizers, accelerator, max_grad_norm)
    if not skipped:
        bare.after_step()
    return norm


def _move(
    parameters: Iterable[nn.Parameter],
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    max_grad_norm: float,
) -> tuple[Tensor, bool]:
    """Clip, step, clear. (the gradient's norm before clipping, whether the step was skipped)."""
    norm = accelerator.clip_grad_norm_(parameters, max_grad_norm if max_grad_norm > 0 else float("inf"))
    norm = whole_tensor(norm.detach())
    skip = isinstance(optimizers, Skippable) and not bool(norm.isfinite())
    for optimizer in optimizers:
        if not skip:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm, skip


def with_adversary(method: Method, args: TrainArgs) -> tuple[list[Optimizer], Callable]:
    """The optimizers and the step of a method whose adversarial loss has the weight `args.adversarial`: against a
    discriminator, or alone where the weight is 0."""
    if not args.adversarial:
        return [optim.from_args(method, args)], standard
    rates = args.discriminator_learning_rate, args.learning_rate
    return optim.of_players(method, args, *rates), partial(alternating, reported=1)


def _refuse_batch_norm(method: Method, micro_batches: int) -> None:
    if micro_batches > 1 and has_batch_norm(method):
        raise BadInput(
            f"--gradient_accumulation_steps {micro_batches}: {type(unwrap(method)).__name__} has batch norms, "
            "which would take their statistics from each micro-batch. Use --gradient_accumulation_steps 1, or networks "
            "without batch norms."
        )


def no_sync_before_last(method: Method, i: int, n: int, accelerator: Accelerator):
    """A context in which processes exchange gradients only in the backward pass of the last micro-batch."""
    return accelerator.no_sync(method) if i < n - 1 else nullcontext()


def _mean(outputs: list[Output]) -> Output:
    if len(outputs) == 1:
        return outputs[0]
    trivial = [o.trivial_loss for o in outputs if o.trivial_loss is not None]
    return Output(
        loss=torch.stack([o.loss for o in outputs]).mean(),
        metrics={name: torch.stack([o.metrics[name] for o in outputs]).mean() for name in outputs[0].metrics},
        features=outputs[-1].features,
        trivial_loss=sum(trivial) / len(trivial) if trivial else None,
    )
