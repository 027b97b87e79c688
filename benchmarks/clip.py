"""Pairs per second of CLIP training: the shared loop, a bare PyTorch loop around the same method, and open_clip.

    python benchmarks/clip.py                                  # the loop against the bare loop
    python benchmarks/clip.py --peer_python peer/bin/python    # and against open_clip; see open_clip_worker.py

Same architecture, data (the built-in emoji), batch, optimizer and precision, one view of each image and caption;
decoding and augmentation are included on every side. The sides take turns, a few steps each; the result is the median
over turns of the ratio within a turn. open_clip pads every text to its context length: it is measured at 77, its
default, and at the longest caption of this data, the best value that a user could set by hand.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import turns

from mmssl.arguments import Flags, command, flag
from mmssl.data import sources
from mmssl.data.image_text import pairs
from mmssl.data.images import views
from mmssl.data.loader import Loader
from mmssl.device import fast_bf16
from mmssl.kernels.attention import fast_attention
from mmssl.methods import clip
from mmssl.models import towers
from mmssl.training.loop import train
from mmssl.training.optim import adamw, schedule, set_learning_rate

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
from clip import AUGMENTATIONS, ClipArgs


@dataclass
class BenchmarkArgs(Flags):
    peer_python: str | None = flag(None, "interpreter of an environment with open_clip_torch")
    turns: int = flag(7, "of every side", at_least=1)
    steps: int = flag(10, "in a turn", at_least=1)
    workers: int = flag(0, "data processes, for every side", at_least=0)
    threads: int = flag(torch.get_num_threads(), "of torch, for every side", at_least=1)


def main(args: BenchmarkArgs) -> None:
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as place:
        sides = Ours(args, Path(place)).sides()
        if args.peer_python:
            sides |= open_clip_sides(args, Path(place))
        seconds = turns.take_turns(sides, args.turns, args.steps)
    batch = ClipArgs().per_device_train_batch_size
    print(
        f"{args.turns} turns of {args.steps} steps of {batch} pairs, {args.threads} threads, "
        f"{turns.precision(use_cpu=True)}"
    )
    turns.report(seconds, args.steps * batch, "pairs")


class Ours:
    """The recipe's own parts, under the shared loop and under a bare one."""

    def __init__(self, args: BenchmarkArgs, place: Path) -> None:
        self.recipe, self.place, self.workers = ClipArgs(bf16="auto", use_cpu=True), place, args.workers
        rows = sources.load("emoji")["train"]
        columns = pairs.columns(rows.column_names, None, None)
        torch.manual_seed(0)
        model, processor = towers.build(self.recipe, lambda: pairs.all_captions(rows, columns[1]))
        self.data = pairs.Pairs(rows, processor, self.recipe.max_length, *columns)
        view, images = AUGMENTATIONS[self.recipe.augmentation], processor.image_processor
        self.method = clip.CLIP(model, views.Views([view], images.image_mean, images.image_std))

    def sides(self) -> turns.Sides:
        return {turns.OURS: self.loop, "bare loop": self.bare}

    def parts(self):
        loader = Loader(self.data, self.recipe.per_device_train_batch_size, num_workers=self.workers)
        return loader, adamw(self.method, 1e-4, self.recipe.weight_decay, (0.9, self.recipe.adam_beta2))

    def loop(self, steps: int) -> float:
        loader, optimizer = self.parts()
        settings = vars(self.recipe) | turns.RUN | {"output_dir": str(self.place / "run"), "max_steps": steps}
        return train(self.method, loader, ClipArgs(**settings), [optimizer]).seconds

    def bare(self, steps: int) -> float:
        """What one writes by hand for one process, around the same attention."""
        loader, optimizer = self.parts()
        bf16 = fast_bf16(use_cpu=True)
        began, batches = time.perf_counter(), iter(())
        for step in range(steps):
            if (batch := next(batches, None)) is None:
                batches = loader.epoch(step)
                batch = next(batches)
            del batch["index"]
            set_learning_rate([optimizer], schedule(step, steps, self.recipe.warmup_steps))
            with fast_attention(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = self.method(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            self.method.after_step()
        return time.perf_counter() - began


def open_clip_sides(args: BenchmarkArgs, place: Path) -> turns.Sides:
    """open_clip on the same pictures, as files, and the same token ids; one side for each context length."""
    ours = Ours(args, place)
    recipe, data = ours.recipe, ours.data
    tokens = data.tokens[torch.arange(len(data.tokens))]["input_ids"][data.first[:-1]].numpy()
    np.save(place / "tokens.npy", np.pad(tokens, [(0, 0), (0, 77 - tokens.shape[1])]))
    rows = sources.load("emoji")["train"].cast_column("image", pairs.datasets.Image(decode=False))
    with open(place / "pairs.csv", "w", newline="") as f:
        writer = csv.writer(f, delimiter="\t")
        writer.writerow(["file", "row"])
        for i, image in enumerate(rows["image"]):
            (place / f"{i}.png").write_bytes(image["bytes"])
            writer.writerow([place / f"{i}.png", i])
    vision, text = ours.method.model.config.vision_config, ours.method.model.config.text_config
    given = {
        "csv": str(place / "pairs.csv"),
        "tokens": str(place / "tokens.npy"),
        "batch": recipe.per_device_train_batch_size,
        "threads": args.threads,
        "workers": args.workers,
        "precision": "amp_bf16" if fast_bf16(use_cpu=True) else "fp32",
        "embed_dim": recipe.projection_dim,
        "vision": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": 64,
        },
        "text": {
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
        },
    }
    sides = {}
    for context in (77, tokens.shape[1]):
        settings = given | {"text": given["text"] | {"context_length": context}}
        worker = subprocess.Popen(
            [args.peer_python, Path(__file__).with_name("open_clip_worker.py"), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        sides[f"open_clip, context {context}"] = lambda steps, worker=worker: turns.ask(worker, steps)
    return sides


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
