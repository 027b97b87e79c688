"""lightly's side of benchmarks/joint_embedding.py: its transforms, heads and losses in a plain loop.

Runs in an environment of its own (lightly needs torchvision). Reads from standard input how many steps to take, answers
with the seconds they took.

    python -m venv peer && peer/bin/pip install torch==2.13.0 transformers==5.23.0 lightly==1.6.0
"""

from __future__ import annotations

import copy
import json
import sys
import time
from itertools import cycle

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import torchvision_operators  # noqa: F401, isort: skip

from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import update_momentum
from lightly.transforms import BYOLTransform, DINOTransform, SimCLRTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from transformers import ResNetConfig, ResNetModel


class Images(Dataset):
    def __init__(self, images: list[Image.Image], transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        return self.transform(self.images[i])


class Encoder(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.model = ResNetModel(ResNetConfig(**config)).to(memory_format=torch.channels_last)
        self.width = config["hidden_sizes"][-1]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels).pooler_output.flatten(1)


class SimCLR(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, SimCLRProjectionHead(encoder.width, encoder.width, 128)
        self.criterion = NTXentLoss(temperature=0.1)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        first, second = (self.head(self.encoder(view)) for view in views)
        return self.criterion(first, second)

    def after_step(self) -> None:
        pass


class BYOL(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, BYOLProjectionHead(encoder.width, 1024, 256)
        self.predictor = BYOLPredictionHead(256, 1024, 256)
        self.target, self.target_head = (copy.deepcopy(part).requires_grad_(False) for part in (encoder, self.head))
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        predictions = [self.predictor(self.head(self.encoder(view))) for view in views]
        with torch.no_grad():
            targets = [self.target_head(self.target(view)) for view in views]
        return (self.criterion(predictions[0], targets[1]) + self.criterion(predictions[1], targets[0])) / 2

    def after_step(self) -> None:
        update_momentum(self.encoder, self.target, 0.99)
        update_momentum(self.head, self.target_head, 0.99)


class DINO(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head, self.teacher_head = (
            DINOProjectionHead(encoder.width, 512, 128, 1024, batch_norm=True) for _ in range(2)
        )
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.criterion = DINOLoss(output_dim=1024)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            teacher = [self.teacher_head(self.teacher(view)) for view in views[:2]]
        student = [self.head(self.encoder(view)) for view in views]
        return self.criterion(teacher, student, epoch=0)

    def after_step(self) -> None:
        update_momentum(self.encoder, self.teacher, 0.99)
        update_momentum(self.head, self.teacher_head, 0.99)


def transform_of(given: dict):
    size, blurred = given["size"], given["blurred"]
    if given["method"] == "simclr":
        return SimCLRTransform(size, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.5 if blurred else 0.0)
    if given["method"] == "byol":
        blurs = (1.0, 0.1) if blurred else (0.0, 0.0)
        first = BYOLView1Transform(size, min_scale=0.2, gaussian_blur=blurs[0])
        return BYOLTransform(first, BYOLView2Transform(size, min_scale=0.2, gaussian_blur=blurs[1]))
    return DINOTransform(
        size, local_crop_size=size // 2, n_local_views=given["small_views"], cj_hue=0.1, cj_sat=0.2,
        gaussian_blur=(1.0, 0.1, 0.5) if blurred else (0.0, 0.0, 0.0),
    )  # fmt: skip


def main() -> None:
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["cores"])
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (given["images"], given["size"], given["size"], 3), dtype=torch.uint8).numpy()
    data = Images([Image.fromarray(image) for image in pixels], transform_of(given))
    loader = DataLoader(
        data, given["batch"], shuffle=True, drop_last=True, num_workers=given["workers"],
        persistent_workers=given["workers"] > 0,
    )  # fmt: skip
    batches = (batch for _ in cycle([0]) for batch in loader)
    method = {"simclr": SimCLR, "byol": BYOL, "dino": DINO}[given["method"]](Encoder(given["config"]))
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4, fused=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            with torch.autocast("cpu", torch.bfloat16, enabled=given["bf16"]):
                loss = method(next(batches))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            method.after_step()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
