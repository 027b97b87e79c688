"""Images per second of MAE pretraining: the shared loop, and transformers' Trainer with ViTMAEForPreTraining.

    python benchmarks/mae.py                                                       # the built-in emoji
    python benchmarks/mae.py --dataset cifar10.parquet --image_size 32 --patch_size 4

Same architecture, images, batch, optimizer and augmentation (random resized crop, flip); reading, decoding and
augmentation are included on every side. Trainer's images are decoded and augmented one at a time with Pillow, as in
transformers' MAE example. Ours runs in bf16 if the machine computes it fast, and a second time with half of the masked
patches decoded. Trainer runs in fp32, its default; in bf16; and with all its defaults, in batches of 8, which makes
more updates per image, so that only images per second are comparable. The sides take turns, with the same number of
images each; the result is the median over turns of the ratio within a turn.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import turns
from PIL import Image
from transformers import Trainer, TrainingArguments, ViTMAEForPreTraining
from transformers.utils import logging

from mmssl.arguments import Flags, command, flag
from mmssl.data import sources
from mmssl.data.image_text import pairs
from mmssl.data.images import decoding, views
from mmssl.data.images.pictures import Pictures
from mmssl.data.loader import Loader
from mmssl.methods import mae
from mmssl.training import optim
from mmssl.training.loop import train

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
from mae import MaeArgs


@dataclass
class BenchmarkArgs(Flags):
    dataset: str = flag("emoji", "images: a built-in name, file, folder or Hub id")
    size: str = flag("micro", "of encoder and decoder", tuple(mae.SIZES))
    image_size: int = flag(72, "pixels a side", at_least=1)
    patch_size: int = flag(9, "pixels a side", at_least=1)
    batch_size: int = flag(128, "images in a step", at_least=1)
    turns: int = flag(5, "of every side", at_least=1)
    steps: int = flag(8, "in a turn", at_least=1)
    workers: int = flag(0, "data processes, for every side", at_least=0)
    threads: int = flag(torch.get_num_threads(), "of torch, for every side", at_least=1)
    torch_compile: bool = flag(False, "one side more: our loop with --torch_compile layers")
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")


def main(args: BenchmarkArgs) -> None:
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    rows = sources.load(args.dataset)["train"]
    column = pairs.image_column(rows, None)
    with tempfile.TemporaryDirectory() as place:
        sides: turns.Sides = {turns.OURS: Ours(args, rows, column, place)}
        sides["mmssl loop, decode_ratio 0.5"] = Ours(args, rows, column, place, decode_ratio=0.5)
        if args.torch_compile:
            sides["mmssl loop, compiled"] = Ours(args, rows, column, place, torch_compile="layers")
        sides["Trainer"] = Theirs(args, rows, column, place)
        sides["Trainer, bf16"] = Theirs(args, rows, column, place, bf16=True)
        default = TrainingArguments.per_device_train_batch_size
        sides[f"Trainer, batches of {default}"] = Theirs(args, rows, column, place, batch_size=default)
        seconds = turns.take_turns(sides, args.turns, args.steps)
    print(
        f"{args.turns} turns of {args.steps} steps of {args.batch_size} images, {args.image_size} px in patches of "
        f"{args.patch_size}, size {args.size}, {args.threads} threads; mmssl in {turns.precision(args.use_cpu)}"
    )
    turns.report(seconds, args.steps * args.batch_size, "images")


class Ours:
    """The recipe's own parts. Called with a number of steps; returns seconds."""

    def __init__(
        self,
        args: BenchmarkArgs,
        rows,
        column: str,
        place: str,
        decode_ratio: float = 1.0,
        torch_compile: str = "no",
    ) -> None:
        torch.manual_seed(0)
        model, processor = mae.from_scratch(mae.SIZES[args.size], args.image_size, args.patch_size)
        self.loader = Loader(Pictures(rows, processor, column), args.batch_size, num_workers=args.workers)
        view = views.Views([views.CROP_FLIP], processor.image_mean, processor.image_std)
        self.method = mae.MAE(model, view, decode_ratio)
        self.settings = {
            "output_dir": f"{place}/ours{decode_ratio}{torch_compile}",
            "use_cpu": args.use_cpu,
            **turns.RUN,
            "torch_compile": torch_compile,
        }

    def __call__(self, steps: int) -> float:
        recipe = MaeArgs(**self.settings, max_steps=steps)
        return train(self.method, self.loader, recipe, [optim.from_args(self.method, recipe)]).seconds


class Theirs:
    """Trainer, see above. Called with a number of steps of our batch; returns the seconds for as many images."""

    def __init__(
        self, args: BenchmarkArgs, rows, column: str, place: str, bf16: bool = False, batch_size: int | None = None
    ) -> None:
        self.args, self.place, self.bf16, self.column = args, place, bf16, column
        self.batch_size = batch_size or args.batch_size
        model, _ = mae.from_scratch(mae.SIZES[args.size], args.image_size, args.patch_size)
        self.model = ViTMAEForPreTraining(model.config)
        self.rows = decoding.undecoded(rows, column).select_columns([column]).with_transform(self._read)

    def _read(self, batch: dict) -> dict:
        return {"pixel_values": [self._augmented(decoding.as_rgb(image)) for image in batch[self.column]]}

    def _augmented(self, image: Image.Image) -> torch.Tensor:
        """The same crop and mirror image as ours, one image at a time."""
        area = image.width * image.height * random.uniform(0.2, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = min(image.width, math.sqrt(area * ratio)), min(image.height, math.sqrt(area / ratio))
        left, top = random.uniform(0, image.width - wide), random.uniform(0, image.height - high)
        size = (self.args.image_size, self.args.image_size)
        image = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5

    def __call__(self, steps: int) -> float:
        settings = turns.trainer_settings(
            self.args.use_cpu,
            output_dir=f"{self.place}/theirs",
            max_steps=steps * self.args.batch_size // self.batch_size,
            per_device_train_batch_size=self.batch_size,
            dataloader_num_workers=self.args.workers,
            remove_unused_columns=False,
            bf16=self.bf16,
        )
        return Trainer(self.model, settings, train_dataset=self.rows).train().metrics["train_runtime"]


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
