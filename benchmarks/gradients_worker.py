"""One side of benchmarks/gradients.py: the gradients of its losses on two processes and on one."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing import spawn

ROWS, INPUTS, DIM, PROTOTYPES = 32, 24, 16, 10


def ours() -> dict:
    from mmssl.distributed import gather
    from mmssl.methods import barlow_twins, moco_v3, simclr, vicreg
    from mmssl.models.self_distillation import between_views, sinkhorn

    def of_vicreg(first: Tensor, second: Tensor) -> Tensor:
        first, second = gather(first), gather(second)
        terms = F.mse_loss(first, second), vicreg.variance(first) + vicreg.variance(second)
        return 25 * terms[0] + 25 * terms[1] + vicreg.covariance(first) + vicreg.covariance(second)

    def of_swav(first: Tensor, second: Tensor) -> Tensor:
        scores = [unit(first) @ prototypes().T, unit(second) @ prototypes().T]
        return between_views([sinkhorn(each, 0.05, 3) for each in scores], scores, 0.1)

    return {
        "SimCLR": lambda first, second: simclr.nt_xent(unit(first), unit(second), 0.5)[0],
        "Barlow Twins": lambda first, second: sum(
            barlow_twins.redundancy(barlow_twins.cross_correlation(gather(first), gather(second)), 0.005)
        ),
        "VICReg": of_vicreg,
        "SwAV": of_swav,
        "MoCo v3": lambda first, second: moco_v3.contrast(unit(first), unit(second).detach(), 0.2)[0],
    }


def lightly(gathered: bool) -> dict:
    import torchvision_operators  # noqa: F401, isort: skip
    from lightly.loss import BarlowTwinsLoss, NTXentLoss, SwaVLoss, VICRegLoss

    def of_swav(first: Tensor, second: Tensor) -> Tensor:
        scores = [unit(first) @ prototypes().T, unit(second) @ prototypes().T]
        return SwaVLoss(sinkhorn_gather_distributed=gathered)(scores, [])

    return {
        "SimCLR": lambda first, second: NTXentLoss(0.5, gather_distributed=gathered)(first, second),
        "Barlow Twins": lambda first, second: BarlowTwinsLoss(gather_distributed=gathered)(first, second),
        "VICReg": lambda first, second: VICRegLoss(gather_distributed=gathered)(first, second),
        "SwAV": of_swav,
    }


def solo_learn(clone: str) -> dict:
    import torchvision_operators  # noqa: F401, isort: skip

    for name in ("solo", "solo.utils"):  # without their __init__, which imports what the losses do not need
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(Path(clone, *name.split(".")))]
    from solo.losses import barlow_loss_func, mocov3_loss_func, simclr_loss_func, vicreg_loss_func

    def of_simclr(first: Tensor, second: Tensor) -> Tensor:
        offset = dist.get_rank() * len(first) if dist.is_initialized() else 0
        return simclr_loss_func(torch.cat([first, second]), (torch.arange(len(first)) + offset).repeat(2), 0.5)

    return {
        "SimCLR": of_simclr,
        "Barlow Twins": barlow_loss_func,
        "VICReg": vicreg_loss_func,
        "MoCo v3": lambda first, second: mocov3_loss_func(first, second.detach(), 0.2),
    }


SIDES = {
    "ours": ours,
    "lightly_default": lambda: lightly(False),
    "lightly_gathered": lambda: lightly(True),
    "solo_learn": lambda: solo_learn(sys.argv[2]),
}


def unit(z: Tensor) -> Tensor:
    return F.normalize(z, dim=1)


def prototypes() -> Tensor:
    return unit(torch.randn(PROTOTYPES, DIM, generator=torch.Generator().manual_seed(3)))


def gradient(loss, rows: slice) -> Tensor:
    """That of a linear encoder; the two views of a row are a vector and a near one."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(INPUTS, DIM, generator=generator).requires_grad_()
    x = torch.randn(ROWS, INPUTS, generator=generator)
    near = x + 0.3 * torch.randn(ROWS, INPUTS, generator=generator)
    loss(x[rows] @ weight, near[rows] @ weight).backward()
    return weight.grad


def process(rank: int, arguments: list[str], port: int, place: str) -> None:
    sys.argv = arguments
    losses = SIDES[arguments[1]]()
    whole = {name: gradient(loss, slice(None)) for name, loss in losses.items()}
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for name, loss in losses.items():
        half = gradient(loss, slice(rank * ROWS // 2, (rank + 1) * ROWS // 2))
        dist.all_reduce(half)
        half /= 2
        cosine = F.cosine_similarity(half.flatten(), whole[name].flatten(), dim=0)
        found[name] = (half.norm() / whole[name].norm()).item(), cosine.item()
    if rank == 0:
        Path(place, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        spawn(process, (sys.argv, port, place), nprocs=2)
        print(Path(place, "found.json").read_text())


if __name__ == "__main__":
    main()
