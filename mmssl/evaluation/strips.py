"""The method's own loss on held-out clips, and figures of what it does with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmssl import figures
from mmssl.evaluation.held_out import Columns, HeldOut

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from mmssl.method import Method

CLIPS = 4  # in a figure


class Strips(HeldOut):
    """
    task:   caption of a figure of the method's own task. The rows are what `method.shown(pixel_values, key)` returns:
            title -> (clips, time, 3, height, width) in [0, 1].
    chance: see HeldOut.
    """

    def __init__(self, held_out: Dataset, batch_size: int, task: str, chance: dict[str, float] | None = None) -> None:
        super().__init__(held_out, batch_size, chance)
        self.task = task

    @torch.no_grad()
    def draw(self, method: Method, directory: Path, results: Columns) -> dict[str, str]:
        device, count = next(method.parameters()).device, min(CLIPS, len(self.held_out))
        asked = torch.linspace(0, len(self.held_out) - 1, count).long().tolist()
        batch = self.held_out.__getitems__(asked)
        rows = method.shown(batch["pixel_values"].to(device), batch["key"].to(device))
        rows = {title: clips.float().cpu() for title, clips in rows.items()}
        figures.strips(rows, directory / "clips.png")
        figures.animation(rows, directory / "clips.gif")
        return {"clips.png": self.task, "clips.gif": "The same, animated."}
