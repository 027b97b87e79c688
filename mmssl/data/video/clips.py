"""Clips without labels: windows of the videos of a data set, drawn by seed, epoch and row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.arguments import Flags, check_text, flag
from mmssl.data import columns, contents, draws, folders, sources
from mmssl.data.built_in import DRAWN
from mmssl.data.video import decoding
from mmssl.data.video.frames import Frames, Kept, Rows, Streamed
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets

    from mmssl.data.built_in.moving_digits import MovingDigits
    from mmssl.data.images.views import Views

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".gif")
LOOKED_AT = 8  # videos that are opened to find the usual size
LARGEST = 112  # px: upper limit of the default size
STILL = 0.1  # of the mean motion: added, so that a window without motion is drawn, too
WHERE = 1 << 24  # stream of the draw of a window's place


@dataclass
class ClipArgs(Flags):
    """Flags of recipes that learn from video alone."""

    dataset: str = flag(
        "moving_digits", f"{', '.join(DRAWN)} (built in), a folder of videos, a Parquet file, or a Hub id"
    )
    video_column: str | None = flag(None, "column of videos; default: the first column with a usual name")
    held_out: int = flag(
        200, "videos held out for evaluation if the data has no test split (at most a tenth)", at_least=1
    )
    clips: int = flag(10_000, "clips of moving digits in an epoch; each epoch draws others", at_least=1)
    frames: int = flag(16, "frames in a clip", at_least=2, at_most=1024)
    frame_stride: int = flag(1, "a clip takes every n-th frame of a video", at_least=1, at_most=1024)
    fps: float = flag(0.0, "frames a second that are kept of a video; 0: its own", at_least=0, at_most=1000)
    motion: float = flag(
        0.0,
        "prefer parts of a video that move: the chance of a place is its motion to this power; 0: all places alike",
        at_least=0,
        at_most=10,
    )
    beginning: float = flag(
        1.0,
        "fraction of each training video, its beginning, that clips are cut from; 0.66 leaves out what transfer.py "
        "--label_column which_video tests on",
        above=0,
        at_most=1,
    )
    disk_gb: float = flag(20.0, "largest size of the decoded frames on disk, in GB", above=0)
    streaming: bool = flag(False, "do not keep decoded frames: decode them again whenever they are needed")


@dataclass
class Source:
    """Videos, not yet decoded. side: the usual length of the shorter side, in pixels, at most LARGEST."""

    args: ClipArgs
    train: Rows | None
    held_out: Rows | None
    side: int

    def decoded(self, processor) -> tuple[Clips | MovingDigits, Clips | MovingDigits]:
        """(training, held out), in the size that `processor` gives. Raises BadInput if too many cannot be used."""
        args = self.args
        if self.train is None:
            return _moving(args, processor)
        if args.streaming and args.motion:
            raise BadInput("--motion needs the decoded frames, which --streaming does not keep")
        found = []
        for rows, what, seed, beginning in (
            (self.train, "videos", args.seed, args.beginning),
            (self.held_out, "held-out videos", None, 1.0),
        ):
            frames = (
                Streamed(rows, processor, args.fps, what)
                if args.streaming
                else Kept(rows, processor, args.fps, args.disk_gb, what)
            )
            found.append(Clips(frames, args.frames, args.frame_stride, seed, args.motion, what, beginning))
        return found[0], found[1]


def described(train: Clips | MovingDigits, held_out: Clips | MovingDigits) -> dict:
    """The arguments of `pretrain` that describe the data."""
    return {
        "trained_on": f"{len(train):,} clips in an epoch{_of_videos(train)}, without labels",
        "held_out": f"{len(held_out):,} clips{_of_videos(held_out)}",
        "example": {"images": held_out.__getitems__(list(range(min(2, len(held_out)))))["pixel_values"]},
    }


def _of_videos(data: Clips | MovingDigits) -> str:
    if not isinstance(data, Clips):
        return ""
    count = len(data.rows.unique())
    return f" of {count:,} video{'s' * (count != 1)}"


def described_frames(train: Clips | MovingDigits, held_out: Clips | MovingDigits) -> dict:
    """The same, of an encoder that takes single frames."""
    described_clips = described(train, held_out)
    return described_clips | {"example": {"images": described_clips["example"]["images"].flatten(0, 1)[:4]}}


def find(args: ClipArgs) -> Source:
    """The videos of --dataset, split. Raises BadInput if there are none."""
    if args.dataset in DRAWN:
        return Source(args, None, None, 64)
    data = load(args.dataset)
    column = columns.find(data["train"].column_names, args.video_column, columns.VIDEO, "video")
    parts = sources.split(data, args.held_out)
    rate = "fps" if "fps" in data["train"].column_names else None
    train, held_out = (Rows(part, column, rate) for part in parts)
    return Source(args, train, held_out, _usual_side(train))


def load(name: str) -> dict[str, datasets.Dataset]:
    """{"train": ..., "test": ... if there is one}: rows of videos. name: a video file, a folder of them (with the names
    of its folders as labels), or what `sources.load` takes."""
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return {"train": _of_files(path.parent, [str(path)], False)}
    if path.is_dir():
        files = folders.listed(path)
        videos = [file for file in files if file.suffix.lower() in SUFFIXES]
        if videos and not any(contents.suffix(file) in (".parquet", ".tar") for file in files):
            folders.refuse_runs(path, files)
            for file in videos:
                check_text("--dataset: the name", str(file.relative_to(path)))
            parts = folders.by_split(path, videos)
            labelled = len({Path(file).parent for file in videos}) > 1
            found = {part: _of_files(path, chosen, labelled) for part, chosen in parts.items()}
            return sources.named(found)
    return sources.load(name)


def _of_files(root: Path, files: list[str], labelled: bool) -> datasets.Dataset:
    from datasets import Dataset

    names = {"label": [Path(file).parent.name for file in files]} if labelled else {}
    return Dataset.from_dict({"video": files} | names)


def _usual_side(rows: Rows) -> int:
    """Of the first videos that can be read."""
    sides = []
    for row in range(min(len(rows), LOOKED_AT)):
        try:
            sides.append(min(decoding.size(rows[row][0] or {})))
        except Exception:  # it is reported later, when all are decoded
            continue
    return min(LARGEST, sorted(sides)[len(sides) // 2]) if sides else LARGEST


def _moving(args: ClipArgs, processor) -> tuple[MovingDigits, MovingDigits]:
    from mmssl.data.built_in import moving_digits
    from mmssl.data.images import decoding as images

    height, width = images.shape(processor)
    if height != width:
        raise BadInput(f"--dataset {args.dataset}: its frames are square, not {height} x {width} pixels")
    args.refuse(
        ("video_column", "frame_stride", "fps", "motion", "beginning", "disk_gb", "streaming"),
        f"--dataset {args.dataset}, which is drawn and not decoded",
    )
    digits, coloured = DRAWN[args.dataset]
    parts = moving_digits.load(digits)
    given = {"frames": args.frames, "side": height, "coloured": coloured}
    return (
        moving_digits.MovingDigits(*parts["train"], args.clips, **given, seed=args.seed),
        moving_digits.MovingDigits(*parts["test"], min(args.held_out, args.clips), **given),
    )


class Clips(Dataset):
    """Windows of videos.

    frames:    of the videos. window: frames in a clip. stride: between two of them, in frames of the video.
    seed:      each epoch draws a video's windows at other places; there are as many as fit into it side by side. None:
               they follow each other, always the same.
    motion:    power of a window's motion by which its place is drawn; above 0, frames also have `motion`, as Kept has.
    beginning: fraction of each video that clips are cut from; nothing after it is seen.
    lengths:   (videos,) frames of that part. rows: (clips,) the video of each clip.
    """

    def __init__(
        self,
        frames: Frames,
        window: int,
        stride: int = 1,
        seed: int | None = None,
        motion: float = 0.0,
        what: str = "videos",
        beginning: float = 1.0,
    ) -> None:
        """Raises BadInput if more than a tenth of the videos cannot be used."""
        self.frames, self.window, self.stride, self.seed, self.motion, self.epoch = (
            frames, window, stride, seed, motion, 0,
        )  # fmt: skip
        self.span = (window - 1) * stride + 1
        self.lengths = (beginning * frames.lengths.double()).long()
        broken = [f"row {row}: {why}" for row, why in sorted(frames.broken.items())]
        short = [
            f"row {row} ({n} frames)"
            for row, n in enumerate(self.lengths.tolist())
            if n < self.span and row not in frames.broken
        ]
        total, part = len(self.lengths), f"{what}, their first {beginning:.0%}," if beginning < 1 else what
        unusable = {f"{what} that cannot be decoded": broken, f"{part} of fewer than {self.span} frames": short}
        shorter = "lower --frames or --frame_stride, or remove them"
        columns.report_unusable(unusable, total, *([shorter] if len(short) > len(broken) else []))
        often = self.lengths // self.span
        self.rows = torch.repeat_interleave(torch.arange(total), often)
        # which of the windows of its video each clip is
        self.number = torch.arange(len(self.rows)) - torch.repeat_interleave(often.cumsum(0) - often, often)
        self._known: dict[int, Tensor] = {}

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has other keys, and with a seed other windows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def starts(self, places: Tensor) -> Tensor:
        """(clips,) the first frame of each, in its video."""
        if self.seed is None:
            return self.number[places] * self.span
        drawn = draws.uniform(self.keys(places), torch.tensor(WHERE))
        if not self.motion:
            return (drawn * (self.lengths[self.rows[places]] - self.span + 1)).long()
        found = [
            torch.searchsorted(self._cumulative(row), x, right=True)
            for row, x in zip(self.rows[places].tolist(), drawn.double(), strict=True)
        ]
        return torch.stack(found)

    def _cumulative(self, row: int) -> Tensor:
        """(places - 1,) fp64: cumulative probabilities of the places of a window, without the last, which is 1."""
        if row not in self._known:
            total = self.frames.motion(row)[: self.lengths[row]].double().cumsum(0)
            moved = total[self.span - 1 :] - total[: len(total) - self.span + 1]
            weight = (moved + STILL * moved.mean() + 1e-9) ** self.motion
            self._known[row] = (weight / weight.sum()).cumsum(0)[:-1]
        return self._known[row]

    def keys(self, places: Tensor) -> Tensor:
        return draws.draw(places, 0 if self.seed is None else self.seed, self.epoch)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """pixel_values: (batch, window, 3, height, width) uint8. key: (batch,) int64, a function of seed, epoch and
        place, from which a method derives all random draws for the clip. index: (batch,), rows of the source."""
        places = torch.as_tensor(indices)
        numbers = self.starts(places)[:, None] + self.stride * torch.arange(self.window)
        rows = self.rows[places]
        pixels = [self.frames.read(row, which) for row, which in zip(rows.tolist(), numbers, strict=True)]
        return {"pixel_values": torch.stack(pixels), "key": self.keys(places), "index": rows}


def viewed(views: Views, pixel_values: Tensor, key: Tensor | None = None) -> Tensor:
    """(batch, time, 3, height, width) fp32: one view of each clip, the same for all of its frames; without a key, whole
    frames. pixel_values: (batch, time, 3, height, width) uint8. key: (batch,) int64."""
    frames, time = pixel_values.flatten(0, 1), pixel_values.shape[1]
    shown = views.whole(frames) if key is None else views(frames, key.repeat_interleave(time))[0]
    return shown.unflatten(0, (-1, time))
