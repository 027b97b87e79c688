"""Images per second of SimCLR, BYOL and DINO training: the shared loop, and lightly's modules in a plain loop.

    python benchmarks/joint_embedding.py --peer_python peer/bin/python     # see lightly_worker.py

Same stock ResNetModel in the same memory layout, widths of the heads, batch, optimizer, precision, and numbers and
sizes of views. Each side makes its own augmentations with the same probabilities and strengths, from images that lie in
memory: uint8 tensors for ours, Pillow images for lightly, which thus need not be decoded. lightly's views are made in
the training process, and once more by worker processes of a DataLoader, one for each core. The sides take turns; the
result is the median over turns of the ratio within a turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import turns
from torch.utils.data import Dataset
from views import photographs

from mmssl.arguments import Flags, TrainArgs, command, flag
from mmssl.data import draws
from mmssl.data.images import views
from mmssl.data.loader import Loader
from mmssl.device import cores, keep_freed_memory
from mmssl.methods.byol import BYOL
from mmssl.methods.dino import DINO
from mmssl.methods.simclr import SimCLR
from mmssl.models import image_encoders
from mmssl.training.loop import train
from mmssl.training.optim import adamw

METHODS = ("simclr", "byol", "dino")
SMALL_VIEWS = 4  # of DINO


@dataclass
class BenchmarkArgs(Flags):
    peer_python: str | None = flag(None, "interpreter of an environment with lightly")
    encoder: str = flag("resnet-micro", "architecture", ("resnet-micro", "resnet18", "resnet50"))
    size: int = flag(32, "side of the images in pixels", at_least=16, at_most=512)
    images: int = flag(2048, "in memory", at_least=1)
    batch: int = flag(256, "images in a step", at_least=2)
    turns: int = flag(5, "of every side", at_least=1)
    steps: int = flag(6, "in a turn", at_least=1)


class Images(Dataset):
    """As mmssl.data.images.pictures.Pictures gives them."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels, self.epoch = pixels, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(indices)
        return {"pixel_values": self.pixels[rows], "key": draws.draw(rows, 0, self.epoch), "index": rows}


def main(args: BenchmarkArgs) -> None:
    keep_freed_memory()  # as every recipe does on a CPU; lightly's side is a process of its own
    print(f"{args.encoder}, {args.size} px, batch {args.batch}, {cores()} cores, {turns.precision(use_cpu=True)}")
    with tempfile.TemporaryDirectory() as place:
        for name in METHODS:
            sides = {turns.OURS: partial(ours, args, build(name, args), Path(place))}
            if args.peer_python:
                sides["lightly"] = lightly(name, args, workers=0)
                sides[f"lightly, {cores()} workers"] = lightly(name, args, workers=cores())
            print(f"\n{name}, {args.turns} turns of {args.steps} steps")
            turns.report(turns.take_turns(sides, args.turns, args.steps), args.steps * args.batch, "images")


def build(name: str, args: BenchmarkArgs):
    torch.manual_seed(0)
    encoder, processor = image_encoders.from_scratch(args.encoder, args.size)
    if name == "simclr":
        return SimCLR(encoder, views.made_for(processor, [views.simclr(args.size)] * 2))
    large = views.byol(args.size)
    if name == "byol":
        return BYOL(encoder, views.made_for(processor, large))
    sized = [views.sized(view, processor) for view in large]
    crops = views.multi_crop(sized, args.size // 2, SMALL_VIEWS)
    return DINO(encoder, views.Views(crops, processor.image_mean, processor.image_std))


def ours(args: BenchmarkArgs, method, place: Path, steps: int) -> float:
    settings = TrainArgs(output_dir=str(place / "run"), max_steps=steps, use_cpu=True, **turns.RUN)
    loader = Loader(Images(photographs(args.images, args.size)), args.batch)
    return train(method, loader, settings, [adamw(method, 1e-3, 1e-4)]).seconds


def lightly(name: str, args: BenchmarkArgs, workers: int):
    config = image_encoders.from_scratch(args.encoder, args.size)[0].config
    given = {
        "method": name, "config": config.to_dict(), "size": args.size, "images": args.images, "batch": args.batch,
        "small_views": SMALL_VIEWS, "blurred": args.size >= views.BLUR_FROM, "workers": workers, "cores": cores(),
        "bf16": turns.precision(use_cpu=True) == "bf16",
    }  # fmt: skip
    worker = subprocess.Popen(
        [args.peer_python, Path(__file__).with_name("lightly_worker.py"), json.dumps(given)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=sys.stderr,
    )  # fmt: skip
    return partial(turns.ask, worker)


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
