"""Views per second of SimCLR's augmentation on a CPU: crop, flip, colour jitter with hue, grey, normalise.

    python benchmarks/views.py                                  # the compiled pass, tensor operations, Pillow
    python benchmarks/views.py --peer_python peer/bin/python    # and kornia; see kornia_worker.py

All sides make views of the size of the image, from images that lie ready in memory (a uint8 tensor; Pillow's own images
for Pillow), with the same ranges and probabilities, and end with a normalised float32 batch. Pillow's side is what
torchvision's transforms do to an image of Pillow. The sides take turns, and what counts is the ratio within a turn.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import turns
from PIL import Image, ImageEnhance
from torch import Tensor

from mmssl.arguments import Flags, command, flag
from mmssl.data.images.views import SIMCLR, Views
from mmssl.kernels.views_torch import tensor_form

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES = {32: 256, 64: 128, 96: 64, 224: 16}  # px, and images in a batch
OURS = "compiled pass"


@dataclass
class BenchmarkArgs(Flags):
    peer_python: str | None = flag(None, "interpreter of an environment with kornia")
    turns: int = flag(9, "of every side", at_least=1)
    steps: int = flag(4, "batches in a turn", at_least=1)
    threads: int = flag(1, "of torch, for every side; Pillow has one", at_least=1)


def main(args: BenchmarkArgs) -> None:
    torch.set_num_threads(args.threads)
    first_call()
    for size, batch in SIZES.items():
        pixels = photographs(batch, size)
        sides = {
            OURS: of_tensors(Views([SIMCLR], MEAN, STD), pixels),
            "the same, blurred in half": of_tensors(Views([replace(SIMCLR, blur=0.5)], MEAN, STD), pixels),
            "tensor_form": plain(pixels),
            "Pillow": of_images(pixels),
        }
        if size < 96:
            del sides["the same, blurred in half"]
        if args.peer_python:
            sides["kornia"] = kornia(args, pixels)
        print(f"\n{size} px, {args.turns} turns of {args.steps} batches of {batch}, threads: {args.threads}")
        turns.report(turns.take_turns(sides, args.turns, args.steps), args.steps * batch, "views", OURS)


def first_call() -> None:
    """What a process waits for once: for numba and the compiler, or for what an earlier process left on disk."""
    began = time.perf_counter()
    Views([SIMCLR], MEAN, STD)(photographs(1, 8), torch.zeros(1, dtype=torch.int64))
    print(f"first call: {time.perf_counter() - began:.2f} s, with numba's import")


def photographs(n: int, size: int) -> Tensor:
    """Smooth colours with some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (255 * (0.9 * pixels + 0.1 * torch.rand(pixels.shape, generator=generator))).byte()


def timed(once: Callable[[int], Tensor]) -> Callable[[int], float]:
    def side(steps: int) -> float:
        began = time.perf_counter()
        for step in range(steps):
            once(step)
        return time.perf_counter() - began

    return side


def of_tensors(views: Views, pixels: Tensor) -> Callable[[int], float]:
    return timed(lambda step: views(pixels, torch.arange(len(pixels)) + step * len(pixels)))


def plain(pixels: Tensor) -> Callable[[int], float]:
    views, size = Views([SIMCLR], MEAN, STD), tuple(pixels.shape[2:])

    def once(step: int) -> Tensor:
        parameters = views.parameters_of(torch.arange(len(pixels)) + step * len(pixels), *size)[0]
        return tensor_form(pixels, parameters, size, False, 0, views.mean, views.std)

    return timed(once)


def of_images(pixels: Tensor) -> Callable[[int], float]:
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))

    def once(step: int) -> Tensor:
        views = [np.asarray(pillow_view(image)).transpose(2, 0, 1) for image in images]
        return torch.from_numpy((np.stack(views).astype(np.float32) / 255 - mean) / std)

    return timed(once)


def pillow_view(image: Image.Image) -> Image.Image:
    wide, high = image.size
    ratio = random.uniform(*np.log(SIMCLR.ratio)) / 2
    side = random.uniform(*SIMCLR.scale) ** 0.5
    w, h = min(1, side * np.exp(ratio)) * wide, min(1, side * np.exp(-ratio)) * high
    x, y = random.uniform(0, wide - w), random.uniform(0, high - h)
    image = image.resize((wide, high), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    if random.random() < SIMCLR.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < SIMCLR.jitter:
        image = ImageEnhance.Brightness(image).enhance(random.uniform(0.6, 1.4))
        image = ImageEnhance.Contrast(image).enhance(random.uniform(0.6, 1.4))
        image = ImageEnhance.Color(image).enhance(random.uniform(0.6, 1.4))
        hue, saturation, value = image.convert("HSV").split()
        turned = np.asarray(hue) + np.uint8(round(random.uniform(-0.1, 0.1) * 255) % 256)
        image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    if random.random() < SIMCLR.grey:
        image = image.convert("L").convert("RGB")
    return image


def kornia(args: BenchmarkArgs, pixels: Tensor) -> Callable[[int], float]:
    given = {
        "size": pixels.shape[2], "batch": len(pixels), "threads": args.threads, "mean": MEAN, "std": STD,
        "scale": SIMCLR.scale, "ratio": SIMCLR.ratio, "strength": SIMCLR.contrast, "hue": SIMCLR.hue,
        "flip": SIMCLR.flip, "jitter": SIMCLR.jitter, "grey": SIMCLR.grey,
    }  # fmt: skip
    worker = subprocess.Popen(
        [args.peer_python, Path(__file__).with_name("kornia_worker.py"), json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return lambda steps: turns.ask(worker, steps)


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
