"""How well the pointers of a method carry the masks of the first frame of a clip on, compared with copying them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import figures
from mmssl.data.built_in.moving_digits import MovingDigits
from mmssl.evaluation.held_out import Columns
from mmssl.evaluation.strips import CLIPS, Strips

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from mmssl.methods.color_copying import ColorCopying

JUDGED = 64  # clips, at most
BATCH = 8
IOU = "mask_iou"
PAINT = torch.tensor([[0.15, 0.15, 0.15], [0.9, 0.3, 0.2], [0.2, 0.5, 0.9], [0.3, 0.8, 0.3]])  # of the masks in figures


def intersection_over_union(found: Tensor, true: Tensor, classes: int) -> Tensor:
    """In per cent, the mean over all frames of all clips and over the objects in them. found, true: (clips, time,
    height, width) int, 0 is the background. classes: with the background."""
    one, other = (F.one_hot(masks.long(), classes)[..., 1:].flatten(2, 3).bool() for masks in (found, true))
    union, there = (one | other).sum(2), other.any(2)
    each = (one & other).sum(2) / union.clamp(min=1)
    return 100 * each[there].mean()


class Propagation(Strips):
    """On clips that come with masks, as moving digits do, also the intersection over union of the masks of all frames
    but the first with those that are carried on from it."""

    def __init__(self, held_out: Dataset, batch_size: int, task: str) -> None:
        super().__init__(held_out, batch_size, task)
        self.masked = isinstance(held_out, MovingDigits)
        if self.masked:
            self.units += " mask_iou: of the masks of digits, carried on from the first frame to the others, per cent."

    @torch.no_grad()
    def __call__(self, method: ColorCopying) -> dict[str, float]:
        values = super().__call__(method)
        if not self.masked:
            return values
        found = torch.cat([self._carried(method, rows) for rows in self._rows()])
        return values | {IOU: self._judged(found)}

    @torch.no_grad()
    def baselines(self, method: ColorCopying) -> Columns:
        columns = super().baselines(method)
        if self.masked:
            true = self._true()
            columns["first mask, copied"] = {IOU: self._judged(true[:, :1].expand_as(true))}
        return columns

    def _judged(self, found: Tensor) -> float:
        true = self._true()
        return intersection_over_union(found[:, 1:], true[:, 1:], self.held_out.together + 1).item()

    def _rows(self) -> tuple[list[int], ...]:
        return tuple(rows.tolist() for rows in torch.arange(min(JUDGED, len(self.held_out))).split(BATCH))

    def _true(self) -> Tensor:
        return torch.cat([self.held_out.masks(rows) for rows in self._rows()])

    def _carried(self, method: ColorCopying, rows: list[int]) -> Tensor:
        """(clips, time, height, width) int64, on the CPU."""
        device = next(method.parameters()).device
        pixels = self.held_out.__getitems__(rows)["pixel_values"].to(device)
        first = F.one_hot(self.held_out.masks(rows)[:, 0].long(), self.held_out.together + 1).permute(0, 3, 1, 2)
        return method.propagate(pixels, first.to(device)).argmax(2).cpu()

    @torch.no_grad()
    def draw(self, method: ColorCopying, directory: Path, results: Columns) -> dict[str, str]:
        drawn = super().draw(method, directory, results)
        if not self.masked:
            return drawn
        asked = torch.linspace(0, len(self.held_out) - 1, min(CLIPS, len(self.held_out))).long().tolist()
        rows = {
            "clip": self.held_out.__getitems__(asked)["pixel_values"].float() / 255,
            "true masks": painted(self.held_out.masks(asked)),
            "carried on": painted(self._carried(method, asked)),
        }
        figures.strips(rows, directory / "masks.png")
        figures.animation(rows, directory / "masks.gif")
        return drawn | {
            "masks.png": "Held-out clips, the masks of their digits, and those of the first frame, carried on.",
            "masks.gif": "The same, animated.",
        }


def painted(masks: Tensor) -> Tensor:
    """(..., 3, height, width) in [0, 1]. masks: (..., height, width) int."""
    return PAINT[masks.long() % len(PAINT)].movedim(-1, -3)
