"""Clips with labels, for probes and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import columns, draws
from mmssl.data.built_in import DRAWN
from mmssl.data.images import decoding as images
from mmssl.data.video.frames import Frames, Kept, Rows
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets

DISK_GB = 20.0  # of decoded frames
TRAIN, TEST = 2000, 1000  # clips of moving digits, at most
TRAINED_ON = 2 / 3  # fraction of a video, its beginning, that training clips are cut from


class Examples(Dataset):
    """Clips at fixed places. rows, starts: (clips,) the video and the first frame of each. window: frames of a clip."""

    lengths = None

    def __init__(self, frames: Frames, rows: Tensor, starts: Tensor, window: int) -> None:
        self.frames, self.rows, self.starts, self.window = frames, rows, starts, window

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: list[int]) -> dict[str, Tensor]:
        """pixel_values: (batch, window, 3, height, width) uint8. key, index: (batch,)."""
        places = torch.as_tensor(places)
        return {"pixel_values": self._read(places), "key": draws.draw(places, 0, 0), "index": self.rows[places]}

    def _read(self, places: Tensor) -> Tensor:
        along, chosen = torch.arange(self.window), zip(self.rows[places], self.starts[places], strict=True)
        return torch.stack([self.frames.read(int(row), start + along) for row, start in chosen])

    def content(self, place: int) -> bytes:
        return self._read(torch.tensor([place])).numpy().tobytes()


class Drawn(Examples):
    """Clips of one moving digit each."""

    def __init__(self, digits: Dataset) -> None:
        super().__init__(None, digits.rows, digits.rows, digits.frames)
        self.digits = digits

    def _read(self, places: Tensor) -> Tensor:
        return self.digits.__getitems__(places.tolist())["pixel_values"]


def middles(rows: datasets.Dataset, column: str, processor, window: int) -> tuple[Tensor, Examples]:
    """(the usable rows, the clip in the middle of each). Raises BadInput if more than a tenth cannot be used."""
    frames = Kept(Rows(rows, column), _of_images(processor), 0.0, DISK_GB, "labelled videos")
    usable = _usable(frames, window)
    return usable, Examples(frames, usable, (frames.lengths[usable] - window) // 2, window)


def moving(name: str, processor, window: int, max_samples: int, make: Callable) -> tuple:
    """(training, test) of the class `make`, data.labelled.Labelled: clips of one digit, whose label it is."""
    from mmssl.data.built_in import moving_digits

    digits, coloured = DRAWN[name]
    side, found = images.shape(_of_images(processor))[0], []
    parts = moving_digits.load(digits)
    for part, count in (("train", TRAIN), ("test", TEST)):
        count = min(count, max_samples or count)
        data = moving_digits.MovingDigits(*parts[part], count, window, side, 1, coloured)
        label = torch.cat([data.labels([row])[:, 0] for row in range(count)])
        names, identity = [str(digit) for digit in range(10)], f"{name} {part} {window} {side} {count}"
        found.append(make(Drawn(data), label, names, identity))
    return tuple(found)


def which(rows: datasets.Dataset, column: str, processor, window: int, make: Callable) -> tuple:
    """(training, test) of the class `make`, data.labelled.Labelled: clips side by side, whose label is their video. A
    video that is too short for a clip in both parts is left out."""
    frames = Kept(Rows(rows, column), _of_images(processor), 0.0, DISK_GB, "videos")
    boundary = (TRAINED_ON * frames.lengths).long()
    usable = ((boundary >= window) & (frames.lengths - boundary >= window)).nonzero()[:, 0].tolist()
    if len(usable) < 2:
        raise BadInput(f"fewer than two videos have {3 * window} frames, so that both parts have clips of {window}")
    found = []
    for part in ("train", "test"):
        of, starts, label = [], [], []
        for number, row in enumerate(usable):
            low, high = (0, int(boundary[row])) if part == "train" else (int(boundary[row]), int(frames.lengths[row]))
            own = list(range(low, high - window + 1, max(1, window // 2) if part == "train" else window))
            of, starts, label = of + [row] * len(own), starts + own, label + [number] * len(own)
        clips = Examples(frames, torch.tensor(of), torch.tensor(starts), window)
        names = [f"video {row}" for row in usable]
        found.append(make(clips, torch.tensor(label), names, f"{rows._fingerprint} {column} {part} {window}"))
    return tuple(found)


def _usable(frames: Frames, window: int) -> Tensor:
    """(rows,) those with enough frames; the others are named."""
    broken = [f"row {row}: {why}" for row, why in sorted(frames.broken.items())]
    lengths = enumerate(frames.lengths.tolist())
    short = [f"row {row} ({n} frames)" for row, n in lengths if n < window and row not in frames.broken]
    found = {"labelled videos that cannot be decoded": broken, f"labelled videos of fewer than {window} frames": short}
    columns.report_unusable(found, len(frames.lengths))
    return (frames.lengths >= window).nonzero()[:, 0]


def _of_images(processor):
    return getattr(processor, "image_processor", processor)
