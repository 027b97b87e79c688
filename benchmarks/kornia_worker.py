"""kornia's side of benchmarks/views.py: its augmentations of a batch, in the order of its own SimCLR examples.

Runs in an environment of its own. Reads from standard input how many batches to make, answers with the seconds
that they took.

    python -m venv peer && peer/bin/pip install torch==2.13.0 kornia==0.9.0
"""

from __future__ import annotations

import json
import sys
import time

import kornia.augmentation as augmentation
import torch


def main() -> None:
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    size, strength = given["size"], given["strength"]
    augment = augmentation.ImageSequential(
        augmentation.RandomResizedCrop((size, size), tuple(given["scale"]), tuple(given["ratio"])),
        augmentation.RandomHorizontalFlip(p=given["flip"]),
        augmentation.ColorJitter(strength, strength, strength, given["hue"], p=given["jitter"]),
        augmentation.RandomGrayscale(p=given["grey"]),
        augmentation.Normalize(torch.tensor(given["mean"]), torch.tensor(given["std"])),
    )
    pixels = torch.randint(0, 256, (given["batch"], 3, size, size), dtype=torch.uint8)
    for line in sys.stdin:
        began = time.perf_counter()
        with torch.no_grad():
            for _ in range(int(line)):
                augment(pixels.float() / 255)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
