"""FSDP2: parameters, gradients and moments of a model that is larger than one device, split over all processes.

Outside of a method's forward each of its parameters is a DTensor: whole to whoever computes with it, a part of it on
each process. In forward, a layer is gathered while it computes, all else (embeddings, heads) while the step computes.
What a file holds, and what an evaluation gets, are whole tensors: those of a run that is not sharded (DDP).

Memory of a process: parameters, gradients and moments divided by the number of processes; whole, two or three layers at
a time and, while a step computes, what is in no layer. The main process also keeps the parameters whole, 4 bytes each,
on its host and, while it evaluates, on its device; its host holds them once more, or the moments, while a checkpoint is
written. Every process builds the whole model on its host before it is split.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import chain
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from mmssl.distributed import is_split, rank, sharded, whole_tensor
from mmssl.errors import BadInput, first_line
from mmssl.method import Method, Output
from mmssl.training import steps

if TYPE_CHECKING:
    from accelerate import Accelerator

INSTEAD = "Launch it with --multi_gpu, without --use_fsdp: then every process holds the whole model"


def prepare(
    method: Method, step: Callable[..., Output], optimizers: Sequence[Optimizer], accelerator: Accelerator
) -> tuple[nn.Module, Callable[..., Output]]:
    """What is trained, on the device, and the step to train it with: the method within DDP or, if the launcher asks for
    it, sharded.

    A sharded method is another object on the main process, where `method` stays whole, for evaluations and the export:
    see `collect`. The optimizers then hold the parameters of the sharded one. Raises BadInput if it cannot be sharded.
    """
    if not sharded():
        return accelerator.prepare(method), step
    name = type(method).__name__
    if step not in (steps.standard, steps.grad_cache):
        raise BadInput(
            f"{name} cannot be sharded: its training step is not the standard one, and moves parameters itself. "
            f"{INSTEAD}"
        )
    if type(method).start_epoch is not Method.start_epoch:
        raise BadInput(
            f"{name} cannot be sharded: it has work to do between epochs, when each process has only a part of the "
            f"parameters. {INSTEAD}"
        )
    accelerator.prepare_model(method, device_placement=False, evaluation_mode=True)  # autocast alone
    trained = copy.deepcopy(method) if accelerator.is_main_process else method
    names = {parameter: name for name, parameter in method.named_parameters()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = [[names[parameter] for parameter in group["params"]] for group in groups]
    del names
    for group in groups:
        group["params"] = []  # what is split is freed on the device only when nothing refers to it
    _split(trained, accelerator)
    parameters = dict(trained.named_parameters())
    for group, of_group in zip(groups, held, strict=True):
        group["params"] = [parameters[name] for name in of_group]
    return trained, _explaining(step, name)


def _split(method: nn.Module, accelerator: Accelerator) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    device = accelerator.device
    scalars = {parameter for parameter in method.parameters() if parameter.ndim == 0}  # cannot be split
    for parameter in method.parameters():
        parameter.data = parameter.data.contiguous()  # not channels_last: a part is some of the rows
    for parameter in scalars:
        parameter.data = parameter.data.to(device)
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average_gradient)
    options = {"mesh": init_device_mesh(device.type, (accelerator.num_processes,)), "ignored_params": scalars}
    # under autocast, copies in bf16 of all gathered parameters would be kept until backward; the exchange in bf16 also
    # takes half as long. Losses and heads are outside of layers, and get fp32
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers(method):
        norms = [part for part in layer.modules() if _is_norm(part) and not isinstance(part, FSDPModule)]
        if half and norms:
            fully_shard(norms, reshard_after_forward=False, **options)
        if not isinstance(layer, FSDPModule):  # a norm in a list of its own already is one
            fully_shard(layer, mp_policy=policy, reshard_after_forward=True, **options)
    fully_shard(method, reshard_after_forward=False, **options)


def layers(method: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time, inner ones first: those in lists (`nn.ModuleList`), as the layers of
    every transformer are. A teacher's are split like its student's, so that a moving average needs no exchange."""
    lists = [module for module in method.modules() if isinstance(module, nn.ModuleList)]
    found = dict.fromkeys(layer for each in lists for layer in each if not isinstance(layer, nn.ModuleList))
    return [layer for layer in reversed([*method.modules()]) if layer in found and [*layer.parameters()]]


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has vectors only, as a norm and a layer scale have: autocast leaves them in fp32."""
    own = [*module.parameters(recurse=False)]
    return bool(own) and not [*module.children()] and all(parameter.ndim == 1 for parameter in own)


@torch.no_grad()
def _average_gradient(parameter: nn.Parameter) -> None:
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def _explaining(step: Callable[..., Output], name: str) -> Callable[..., Output]:
    """`step`; where it mixes the parts of a parameter with whole tensors, it raises BadInput."""

    @wraps(step)
    def explaining(*given) -> Output:
        try:
            return step(*given)
        except (RuntimeError, ValueError, AssertionError) as error:  # whichever torch raises
            if "DTensor" in str(error) or "FSDP" in str(error) or "sharding strategy" in str(error):
                raise BadInput(
                    f"{name} cannot be sharded: outside of its forward, or of a layer's, it uses parameters in a way "
                    f"that only whole ones allow ({first_line(error)}). {INSTEAD}"
                ) from error
            raise

    return explaining


@torch.no_grad()
def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole, on the main process; where some are split, in the memory of its host. Every process must call
    it with the same names; it holds one whole tensor at a time, and gets {}."""
    if not sharded():
        return tensors
    found = {}
    for name, tensor in tensors.items():
        full = whole_tensor(tensor)
        if rank() == 0:
            found[name] = full.cpu()
    return found


def own_part(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The whole `tensor` of a file, split as `like` is, if it is; one of another shape (a counter) is not."""
    if like is None or not is_split(like) or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import DTensor

    parts = tensor.chunk(dist.get_world_size())  # as FSDP does it; the last processes may get nothing
    mine = parts[rank()] if rank() < len(parts) else tensor[:0]
    mine = mine.to(like.device, copy=True)  # a view would keep the whole one in memory
    return DTensor.from_local(
        mine, like.device_mesh, like.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process holds."""
    return tensor.to_local() if is_split(tensor) else tensor


@torch.no_grad()
def collect(whole: Method, trained: Method, device: torch.device) -> None:
    """Give `whole` the present weights of `trained`, on the main process, and move it to `device`. Every process must
    call it. Does nothing if they are the same and not sharded."""
    if not sharded():
        return
    mine = dict(chain(whole.named_parameters(), whole.named_buffers()))
    for name, tensor in chain(trained.named_parameters(), trained.named_buffers()):
        full = whole_tensor(tensor)
        if whole is not trained:
            mine[name].copy_(full)
    if whole is not trained:
        whole.to(device)


def put_away(whole: Method, trained: Method) -> None:
    """Free the device from what `collect` put there."""
    if whole is not trained:
        whole.to("cpu")
