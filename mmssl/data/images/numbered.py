"""Images that come with their position in the data set, for methods that keep something for each image."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mmssl.data.images.pictures import Pictures, refuse_streamed

NEVER_TRAINED = 2**31 - 1  # an epoch that no run reaches


class Numbered(Dataset):
    """Batches of `pictures` with `row`: (batch,) int64 positions, from 0.

    The loop removes `index`, the row of the source, from a batch: it counts images that cannot be decoded, too.

    count: use so many images, drawn with `seed`; None: all. Row i is then the i-th of them.
    """

    def __init__(self, pictures: Pictures, count: int | None = None, seed: int = 0) -> None:
        refuse_streamed(pictures)
        self.pictures, self.chosen = pictures, None
        if count is not None and count < len(pictures):
            order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
            self.chosen = order[:count].sort().values

    def set_epoch(self, epoch: int) -> None:
        self.pictures.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.pictures) if self.chosen is None else len(self.chosen)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        row = torch.as_tensor(indices)
        chosen = row if self.chosen is None else self.chosen[row]
        return {**self.pictures.__getitems__(chosen.tolist()), "row": row}

    def copies(self, count: int) -> Subset:
        """The first `count` images, with their rows and with keys that training does not draw: their views are new."""
        other = copy.copy(self)
        other.pictures = copy.copy(self.pictures)
        other.pictures.set_epoch(NEVER_TRAINED)
        return Subset(other, range(min(count, len(self))))
