"""Several data sets as one: a batch holds a batch of each, side by side."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data.images.pictures import refuse_streamed

BETWEEN = "."  # of a part's name and that of a tensor


class Joined(Dataset):
    """As long as the longest part; a shorter one is gone through several times, each time in a new order.

    parts: name -> map-style data set whose `__getitems__(rows)` returns a dict of tensors. In a batch the pixel_values
    of the part "source" are "source.pixel_values"; `apart` undoes that. seed: of the orders.
    """

    def __init__(self, parts: dict[str, Dataset], seed: int = 0) -> None:
        for part in parts.values():
            refuse_streamed(part)
        self.parts, self.seed, self.epoch = parts, seed, 0

    def __len__(self) -> int:
        return max(map(len, self.parts.values()))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        for part in self.parts.values():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """The batches of all parts, and index: (batch,), the rows of the longest part."""
        batch = {"index": torch.tensor(rows)}
        for name, part in self.parts.items():
            fetched = part.__getitems__(self._rows(len(part), rows))
            batch |= {f"{name}{BETWEEN}{key}": value for key, value in fetched.items() if key != "index"}
        return batch

    def _rows(self, length: int, rows: list[int]) -> list[int]:
        """The rows of a part of this length: a function of (seed, epoch, row) alone."""
        if length == len(self):
            return rows
        places = [divmod(self.epoch * len(self) + row, length) for row in rows]
        return [int(_order(length, self.seed, time)[place]) for time, place in places]


@lru_cache(maxsize=64)
def _order(length: int, seed: int, time: int) -> Tensor:
    """(length,) the order of a part when it is gone through for the `time`-th time."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed * 1_000_003 + time))


def apart(batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The batch of each part of `Joined`, under its own names."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in batch.items():
        part, between, name = key.partition(BETWEEN)
        if between:
            found.setdefault(part, {})[name] = value
    return found
