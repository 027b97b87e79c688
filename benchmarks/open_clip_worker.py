"""open_clip's side of benchmarks/clip.py: its model, data set, transforms, loss and training function, unchanged.

Runs in an environment of its own (open_clip_torch needs torchvision). Reads from standard input how many steps to take,
answers with the seconds they took.

    python -m venv peer && peer/bin/pip install torch==2.13.0 open_clip_torch==3.3.0 pandas webdataset braceexpand
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from itertools import cycle, islice
from types import SimpleNamespace

import torch

import torchvision_operators  # noqa: F401, isort: skip

import numpy as np
import open_clip
from open_clip_train.data import CsvDataset
from open_clip_train.train import train_one_epoch
from torch.utils.data import DataLoader


def main() -> None:
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=given["embed_dim"], vision_cfg=given["vision"], text_cfg=given["text"], output_dict=True
    )
    tokens = torch.from_numpy(np.load(given["tokens"]))[:, : given["text"]["context_length"]].long()
    size = given["vision"]["image_size"]
    transform = open_clip.image_transform(size, is_train=True)
    # captions are row numbers: their tokens are ready, which open_clip is not charged for
    data = CsvDataset(given["csv"], transform, "file", "row", tokenizer=lambda texts: tokens[[int(texts[0])]])
    loader = DataLoader(data, given["batch"], shuffle=True, num_workers=given["workers"], drop_last=True)
    batches = (batch for _ in cycle([0]) for batch in loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)
    arguments = Namespace(
        device="cpu", precision=given["precision"], accum_freq=1, skip_scheduler=True, distill=False, horovod=False,
        grad_clip_norm=1.0, log_every_n_steps=10, rank=0, local_rank=0, world_size=1, batch_size=given["batch"],
        wandb=False,
    )  # fmt: skip
    loss = open_clip.ClipLoss()
    for line in sys.stdin:
        steps = int(line)
        part = Batches(batches, steps, given["batch"])
        source = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=part)}
        began = time.perf_counter()
        train_one_epoch(model, source, loss, 0, optimizer, None, None, None, arguments)
        print(time.perf_counter() - began, flush=True)


class Batches:
    """The next `steps` batches of an endless loader."""

    def __init__(self, batches, steps: int, batch: int) -> None:
        self.batches, self.num_batches, self.num_samples = batches, steps, steps * batch

    def __iter__(self):
        return islice(self.batches, self.num_batches)


if __name__ == "__main__":
    main()
