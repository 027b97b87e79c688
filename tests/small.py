"""A method small enough to train in milliseconds that has everything a resume must keep: dropout, an EMA teacher, a
queue, a loss that depends on the progress; and data whose items are drawn at random, from all three generators."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import torch
from device import USE_CPU
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmssl.arguments import TrainArgs
from mmssl.distributed import gather
from mmssl.method import Method, Output
from mmssl.models import ema


class Small(Method):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(8, 4))
        self.unused = nn.Linear(2, 2)  # never has a gradient, so never any moments

    def forward(self, x: Tensor, y: Tensor) -> Output:
        z = self.student(x)
        with torch.no_grad():
            target = self.teacher(x) + y + 0.1 * self.queue.mean(0)
            self.queue = torch.cat([self.queue, gather(z.detach())])[-8:]
        loss = (z - target).square().mean() * (1 + self.progress)
        return Output(loss, {"spread": z.detach().std()}, features=z.detach(), trivial_loss=2.0)

    def after_step(self) -> None:
        ema.update(self.teacher, self.student, 0.9)

    def save_pretrained(self, directory) -> None:
        save_model(self.student, str(Path(directory) / "model.safetensors"))


class Numbers(Dataset):
    """n rows of x and y. noise: how far each x is moved, by a draw from each of the three global generators."""

    def __init__(self, n: int = 50, noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, 6, generator=generator)
        self.y = torch.sin(3 * self.x[:, :4])
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        drawn = torch.randn(6) * random.random() + float(np.random.rand())
        return {"x": self.x[i] + self.noise * drawn, "y": self.y[i], "index": torch.tensor(i)}


def sgd(method: nn.Module, lr: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr)


def adam(method: nn.Module, lr: float = 0.01) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=lr)


def arguments(output_dir, **flags) -> TrainArgs:
    settings = {"max_steps": 10, "per_device_train_batch_size": 6, "save_steps": 0, "logging_steps": 2}
    settings |= {"use_cpu": USE_CPU}
    return TrainArgs(output_dir=str(output_dir), **(settings | {"bf16": "no", "learning_rate": 0.01} | flags))


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: value.cpu().numpy().tobytes() for name, value in module.state_dict().items()}
