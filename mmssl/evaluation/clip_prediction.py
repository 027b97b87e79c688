"""How well a method predicts the frames that follow, compared with the last frame and with mean frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl import figures
from mmssl.evaluation.held_out import Columns
from mmssl.evaluation.strips import Strips
from mmssl.methods.video_lstm import VideoLSTM, squared_error

if TYPE_CHECKING:
    from torch.utils.data import Dataset

FITTED = 512  # training clips, at most, of which the mean frame is taken
BATCH = 32
ERROR = "prediction_error"


class ClipPrediction(Strips):
    """train: clips for the mean frame."""

    def __init__(self, train: Dataset, held_out: Dataset, batch_size: int, task: str) -> None:
        super().__init__(held_out, batch_size, task)
        self.train = train
        self.units = (
            "Of a frame: squared error, and cross entropy in nats, summed over its pixels, the mean over channels. The "
            "last frame, copied; the mean of the frames read; the mean frame of the training clips."
        )

    @torch.no_grad()
    def baselines(self, method: VideoLSTM) -> Columns:
        columns = super().baselines(method)
        if method.future is None:
            return columns
        found, mean = {}, self._mean_frame(method)
        for seen, future in self._held_out(method):
            for name, each in _guesses(seen, mean).items():
                error = squared_error(each.expand_as(future).flatten(0, 1), future.flatten(0, 1))
                found.setdefault(name, []).append(error)
        return columns | {name: {ERROR: torch.cat(errors).mean().item()} for name, errors in found.items()}

    def _mean_frame(self, method: VideoLSTM) -> Tensor:
        """(1, 1, channels, height, width): of the frames that are to be predicted, in training clips."""
        rows = torch.linspace(0, len(self.train) - 1, min(FITTED, len(self.train))).long()
        total = 0.0
        for some in rows.split(BATCH):
            clip = self.train.__getitems__(some.tolist())["pixel_values"]
            total = total + (clip[:, method.frames_read :].float() / 255).mean(1, True).sum(0, True)
        return total / len(rows)

    def _held_out(self, method: VideoLSTM):
        """(seen, future) of each batch, on the CPU."""
        count = len(self.held_out) // self.batch_size * self.batch_size
        for rows in torch.arange(count).split(BATCH):
            clip = self.held_out.__getitems__(rows.tolist())["pixel_values"].float() / 255
            yield clip[:, : method.frames_read], clip[:, method.frames_read :]

    @torch.no_grad()
    def draw(self, method: VideoLSTM, directory: Path, results: Columns) -> dict[str, str]:
        drawn = super().draw(method, directory, results)
        if method.future is None:
            return drawn
        curves: dict[str, list[Tensor]] = {}
        device, mean = next(method.parameters()).device, self._mean_frame(method)
        for seen, future in self._held_out(method):
            guesses = {"trained": method.predict(seen.to(device)).cpu()} | _guesses(seen, mean)
            for name, each in guesses.items():
                errors = squared_error(each.expand_as(future).flatten(0, 1), future.flatten(0, 1))
                curves.setdefault(name, []).append(errors.unflatten(0, future.shape[:2]))
        means = {name: torch.cat(errors).mean(0).tolist() for name, errors in curves.items()}
        figures.curves(means, "frames ahead", "squared error of a frame", [*means][1:], directory / "error.png")
        return drawn | {"error.png": "Squared error of a predicted frame by how far it lies ahead."}


def _guesses(seen: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Name -> predictions, (clips or 1, 1, channels, height, width) in [0, 1]."""
    return {"last frame": seen[:, -1:], "mean of the clip": seen.mean(1, True), "mean frame": mean}
