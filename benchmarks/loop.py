"""Overhead of the loop: time of a step in `train` and in a bare PyTorch loop, with equal model, batches and updates.

python benchmarks/loop.py                # a tiny model (the worst case) and a normal one, in turns; prints the ratios

Both fetch a batch from a DataLoader and run forward, backward, clipping, AdamW and the learning rate schedule. The
shared loop also logs every 10 steps, with the collapse monitor. Results are medians over rounds of the time of one
step.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import ViTConfig, ViTModel

from mmssl.arguments import Flags, TrainArgs, command, flag
from mmssl.data.loader import Loader
from mmssl.method import Method, Output
from mmssl.training.loop import train
from mmssl.training.optim import adamw, schedule


class Denoise(Method):
    """Any encoder, with the simplest loss: predict a vector."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, y: Tensor) -> Output:
        z = self.encoder(x)
        return Output((z - y).square().mean(), features=z.detach())

    def save_pretrained(self, directory) -> None:
        raise NotImplementedError("a benchmark exports nothing")


class Pooled(nn.Module):
    """A ViT-Tiny's first token."""

    def __init__(self) -> None:
        super().__init__()
        shape = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
        self.model = ViTModel(ViTConfig(**shape, image_size=32, patch_size=4), add_pooling_layer=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).last_hidden_state[:, 0]


class Samples(Dataset):
    def __init__(self, shape: tuple[int, ...], outputs: int, n: int) -> None:
        self.x, self.y = torch.randn(n, *shape), torch.randn(n, outputs)

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return {"x": self.x[rows], "y": self.y[rows]}


CASES = {  # name: encoder, shape of a sample, outputs, batch, steps
    "tiny: MLP of 2 x 64, 32 samples": (lambda: nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)),
                                        (64,), 64, 32, 300),
    "normal: ViT-Tiny, 8 images of 32 px": (Pooled, (3, 32, 32), 192, 8, 10),
}  # fmt: skip


def bare_loop(method: Method, data: Dataset, batch: int, steps: int) -> float:
    """Seconds a step."""
    optimizer = adamw(method, 1e-3)
    loader = DataLoader(data, batch, shuffle=True, collate_fn=lambda rows: rows, drop_last=True)
    method.train()
    began = time.perf_counter()
    done = 0
    while done < steps:
        for rows in loader:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * schedule(done, steps, 0.0)
            method(**rows).loss.backward()
            nn.utils.clip_grad_norm_(method.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                break
    return (time.perf_counter() - began) / steps


def our_loop(method: Method, data: Dataset, batch: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        args = TrainArgs(output_dir=directory, max_steps=steps, save_steps=0, use_cpu=True, bf16="no")
        loader = Loader(data, batch, lambda rows: rows)
        return train(method, loader, args, [adamw(method, 1e-3)]).seconds / steps


@dataclass
class BenchmarkArgs(Flags):
    rounds: int = flag(5, "of both loops", at_least=1)


def main(args: BenchmarkArgs) -> None:
    for name, (encoder, shape, outputs, batch, steps) in CASES.items():
        data = Samples(shape, outputs, batch * steps)
        times: dict = {bare_loop: [], our_loop: []}
        for i in range(args.rounds + 1):
            order = (bare_loop, our_loop) if i % 2 else (our_loop, bare_loop)
            for run in order:
                torch.manual_seed(0)
                times[run].append(run(Denoise(encoder()), data, batch, steps))
        bare, ours = (median(times[run][1:]) for run in (bare_loop, our_loop))  # without the first, which warms up
        # rounds are pairs, taken one after the other: the ratio of a pair is steadier than the ratio of two medians
        ratio = median(o / b for o, b in zip(times[our_loop][1:], times[bare_loop][1:], strict=True))
        extra = 1e3 * (ours - bare)
        print(f"{name}: bare {1e3 * bare:.2f} ms, loop {1e3 * ours:.2f} ms a step ({extra:+.2f}), ratio {ratio:.3f}")


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
