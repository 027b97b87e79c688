"""Pictures alone, each decoded once, with the draw of which patches to hide."""

from __future__ import annotations

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws
from mmssl.data.image_text.pairs import report_unusable
from mmssl.data.images.decoded import Decoded


class Pictures(Dataset):
    """
    rows:   (pictures,) of the source that can be used
    pixels: (rows of the source, 3, height, width) uint8: picture i is pixels[rows[i]]. Grey ones have three equal
            channels: so every pipeline takes them.
    """

    def __init__(
        self, data: datasets.Dataset, processor, column: str, patches: int = 0, seed: int = 0, what: str = "images"
    ) -> None:
        """patches: of a picture; with 0 nothing is drawn. Raises BadInput when more than a tenth of the rows cannot be
        used."""
        decoded = Decoded(data, column, processor, what)
        report_unusable([], [f"row {row}: {why}" for row, why in sorted(decoded.broken.items())], len(data), final=True)
        self.pixels, self.patches, self.seed, self.epoch = decoded.pixels, patches, seed, 0
        self.rows = torch.tensor([row for row in range(len(data)) if row not in decoded.broken])

    def set_epoch(self, epoch: int) -> None:
        """Another draw of patches."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8; index: (batch,), rows of the source; noise: (batch, patches)
        in [0, 1), a function of seed, epoch and row."""
        rows = self.rows[torch.as_tensor(indices)]
        batch = {"pixel_values": self.pixels[rows], "index": rows}
        if self.patches:
            each_patch = rows[:, None] * self.patches + torch.arange(self.patches)
            batch["noise"] = draws.share(each_patch, self.seed, self.epoch).float()
        return batch
