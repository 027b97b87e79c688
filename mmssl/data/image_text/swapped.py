"""Image–text pairs of which some are to be compared: half of these have the picture of another pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws
from mmssl.data.image_text.pairs import Pairs, StreamedPairs
from mmssl.errors import BadInput

COMPARED, SWAPPED, PICTURE = 1 << 28, 1 << 29, 1 << 30  # far from the seeds of captions, see pairs.seeds


class Swapped(Dataset):
    """`pairs`; each is compared with probability `share`, drawn again in each epoch.

    A batch also has `compared` and `matched`, (batch,) bool. A compared pair is not matched with probability 1/2: then
    its picture is that of any other pair or, of data that is read in blocks, of any other pair of its block. All draws
    are functions of seed, epoch and pair, not of the batch, so that they are the same on any number of processes.
    Raises BadInput if there is no other pair.
    """

    def __init__(self, pairs: Pairs | StreamedPairs, seed: int, share: float = 0.5) -> None:
        if len(pairs) < 2:
            raise BadInput("one training pair: there is no other picture to swap its own for; give at least two")
        self.pairs, self.seed, self.share, self.epoch = pairs, seed, share, 0
        if hasattr(pairs, "order"):
            self.order = pairs.order

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """As Pairs.__getitems__, with `compared` and `matched`; `index` is the row of the text."""
        batch, chosen = self.pairs.__getitems__(indices), torch.as_tensor(indices)
        compared = draws.share(chosen, self.seed ^ COMPARED, self.epoch) < self.share
        matched = ~compared | (draws.share(chosen, self.seed ^ SWAPPED, self.epoch) >= 0.5)
        swapped = chosen[~matched]
        other = self.pairs.others(swapped, draws.draw(swapped, self.seed ^ PICTURE, self.epoch))
        batch["pixel_values"][~matched] = self.pairs.pictures(other)
        return batch | {"compared": compared, "matched": matched}
