"""Decodes videos to uint8: MP4, MOV, WebM, Matroska, AVI, MPEG, animated GIF, or a list of images.

The frames come at equal times, upright, without black bars, in the size that an image processor gives. Decoding is
that of FFmpeg, which PyAV brings along. The container is told by the first bytes of a file, never by FFmpeg: it also
reads playlists, which name other files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmssl.data import regular_files
from mmssl.data.images import decoding
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    import av

MAX_BYTES = 1 << 33  # of a video's file
MAX_FRAMES = 20_000  # of one video: eleven minutes at 30 Hz
FORMS = {  # bytes, where they are in a file, and what FFmpeg calls the container
    b"ftyp": (4, "mov"),
    b"moov": (4, "mov"),
    b"mdat": (4, "mov"),
    b"wide": (4, "mov"),
    b"\x1a\x45\xdf\xa3": (0, "matroska"),  # and WebM
    b"AVI ": (8, "avi"),
    b"GIF8": (0, "gif"),
    b"\x00\x00\x01\xba": (0, "mpeg"),
}
SEEKABLE, SKIPPED = ("mov", "matroska"), 64  # containers with an index, used from this frame on
TRANSPORT = b"G", 188  # an MPEG transport stream: packets of this many bytes, each begins with this one
UNEVEN = 0.25  # largest deviation of a frame's duration, as a fraction of the usual one; beyond it the rate varies
BLACK = 16  # of 255: a bar is darker
BARS_OF = 16  # frames of a video, the first ones, in which a bar is black
LARGEST_BAR = 0.4  # fraction of a side; more is a dark scene
LIT = 0.5  # fraction of the pixels beside a bar that are not black: a bar ends where the picture begins

Stored = dict | str | bytes | Sequence  # a file, as in `read`, or a list of images


@dataclass
class Video:
    """frames: (time, 3, height, width) uint8, at equal times. rate: of them a second, in Hz; 0: not known. notes: what
    was found and dealt with, such as "variable frame rate"."""

    frames: np.ndarray
    rate: float
    notes: list[str] = field(default_factory=list)


def read(
    stored: Stored, processor, fps: float = 0.0, own_rate: float = 0.0, first: int = 0, count: int = MAX_FRAMES
) -> Video:
    """`count` frames from number `first` on, fewer where the video ends before.

    stored: {"bytes", "path"}, a path, the bytes of a file, or a list of images. processor: an image processor, which
    gives the frames their size. fps: frames a second, in Hz; 0: those of the file, at its mean rate if that varies.
    own_rate: of a list of images, which has none otherwise.

    Raises BadInput, whose message continues the file's name, if there is no frame to be read, or if a file is no video.
    """
    if isinstance(stored, (list, tuple, np.ndarray)):
        if len(stored) == 0:
            raise BadInput("holds no frame")
        times = np.arange(len(stored)) / (own_rate or 1.0)
        rate = (fps or own_rate) if own_rate else 0.0
        wanted = _grid(times, rate or 1.0)[first : first + count]
        images = (_image(stored[i], i) for i in wanted)
        return _finished(images, processor, rate, [])
    with _opened(stored) as (container, notes):
        stream = container.streams.video[0]
        stamps, damaged = _stamps(container, stream)
        times = _seconds(stamps, stream)
        own, varies = _rate(times, stream)
    if damaged:
        notes.append("damaged")
    if varies:
        notes.append("variable frame rate")
    rate = fps or own
    wanted = _grid(times, rate or 1.0)
    if len(wanted) > MAX_FRAMES:
        notes.append(f"cut after {MAX_FRAMES:,} frames")
    wanted = wanted[:MAX_FRAMES][first : first + count]
    if len(wanted) == 0:
        raise BadInput(f"holds no frame {first:,}")
    with _opened(stored) as (container, _):
        return _finished(_decoded(container, wanted, stamps, notes), processor, rate, notes)


def length(stored: Stored, fps: float = 0.0, own_rate: float = 0.0) -> int:
    """The number of frames that `read` gives, without decoding them. Raises BadInput as it does."""
    if isinstance(stored, (list, tuple, np.ndarray)):
        rate = (fps or own_rate) if own_rate else 1.0
        return min(MAX_FRAMES, len(_grid(np.arange(len(stored)) / (own_rate or 1.0), rate)))
    with _opened(stored) as (container, _):
        stream = container.streams.video[0]
        times = _seconds(_stamps(container, stream)[0], stream)
        return min(MAX_FRAMES, len(_grid(times, fps or _rate(times, stream)[0] or 1.0)))


def size(stored: Stored) -> tuple[int, int]:
    """(height, width) of the frames, as they are stored. Raises BadInput as `read` does."""
    if isinstance(stored, (list, tuple, np.ndarray)):
        if len(stored) == 0:
            raise BadInput("holds no frame")
        return _image(stored[0], 0).size[::-1]
    with _opened(stored) as (container, _):
        context = container.streams.video[0].codec_context
        return context.height, context.width


@contextmanager
def _opened(stored: dict | str | bytes) -> Iterator[tuple[av.container.InputContainer, list[str]]]:
    try:
        import av
    except ImportError as error:
        raise BadInput("reading video needs the package av: pip install av") from error
    stored = {"path": stored} if isinstance(stored, str) else {"bytes": stored} if isinstance(stored, bytes) else stored
    content, path = stored.get("bytes"), stored.get("path")
    if content is None and not path:
        raise BadInput("holds no video")
    if content is None and "://" in path:
        content = regular_files.read(path, MAX_BYTES)
    try:
        if content is None:
            regular_files.check(path, MAX_BYTES)
            with open(path, "rb") as file:
                head = file.read(4 * TRANSPORT[1])
        else:
            head = content[: 4 * TRANSPORT[1]]
        source = path if content is None else io.BytesIO(content)
        with av.open(source, format=_form(head), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise BadInput("holds sound, but no picture" if container.streams.audio else "holds no picture")
            context = container.streams.video[0].codec_context
            if context.width * context.height > decoding.MAX_PIXELS:
                raise BadInput(f"holds frames of {context.width:,} x {context.height:,} pixels, more than are read")
            if context.width * context.height == 0:
                raise BadInput("holds frames of no size")
            yield container, [] if container.streams.audio else ["no sound"]
    except (av.error.FFmpegError, OSError) as error:
        raise BadInput(f"cannot be read ({first_line(error)})") from error


def _form(head: bytes) -> str:
    """The container, as FFmpeg calls it."""
    if not head:
        raise BadInput("is empty")
    for mark, (place, name) in FORMS.items():
        if head[place : place + len(mark)] == mark:
            return name
    byte, packet = TRANSPORT
    if len(head) > packet and head[:1] == head[packet : packet + 1] == byte:
        return "mpegts"
    raise BadInput("is not a video: MP4, MOV, WebM, Matroska, AVI, MPEG or GIF")


def _stamps(container, stream) -> tuple[np.ndarray, bool]:
    """((frames,) int64, when each is shown, in units of the stream, without decoding; whether the file is cut off)."""
    import av

    stamps, damaged = [], False
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # the end
                continue
            damaged |= packet.is_corrupt
            stamp = packet.pts if packet.pts is not None else packet.dts
            stamps.append(stamp if stamp is not None else len(stamps))
    except av.error.FFmpegError:
        damaged = True
    damaged |= bool(stream.frames and len(stamps) < stream.frames)
    return np.unique(np.array(stamps, dtype=np.int64)), damaged


def _seconds(stamps: np.ndarray, stream) -> np.ndarray:
    """(frames,) fp64, from the first frame on."""
    if len(stamps) == 0:
        raise BadInput("holds no frame")
    return (stamps - stamps[0]) * float(stream.time_base or 1)


def _rate(times: np.ndarray, stream) -> tuple[float, bool]:
    """(mean rate in Hz, 0 if not known; whether it varies)."""
    if len(times) < 2:
        return float(stream.average_rate or 0), False
    durations = np.diff(times)
    usual = np.median(durations)
    # formats that count milliseconds round 30 Hz to 33 and 34
    varies = bool((np.abs(durations - usual) > max(UNEVEN * usual, 0.0015)).any())
    return (len(times) - 1) / times[-1], varies


def _grid(times: np.ndarray, rate: float) -> np.ndarray:
    """The frame that is shown at each of the times i / rate: the last that has begun, with half a step of tolerance."""
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
    moments = np.arange(max(1, round((times[-1] + usual) * rate))) / rate
    return (np.searchsorted(times, moments + 0.5 * min(usual, 1 / rate)) - 1).clip(0)


def _decoded(container, wanted: np.ndarray, stamps: np.ndarray, notes: list[str]) -> Iterator[Image.Image]:
    """The frames with these numbers, which do not decrease; one may be wanted several times. A frame that is lost is
    replaced by the one before. stamps: (frames,) int64, when each is shown, in units of the stream."""
    import av

    stream, place, last, number = container.streams.video[0], 0, None, -1
    stream.thread_type = "NONE"  # so that a damaged file gives the same frames each time
    if wanted[0] > SKIPPED and container.format.name.startswith(SEEKABLE):
        container.seek(int(stamps[wanted[0]]), stream=stream, backward=True)  # to the key frame before it
    try:
        for frame in container.decode(stream):
            stamp = frame.pts if frame.pts is not None else frame.dts
            number = number + 1 if stamp is None else int(np.searchsorted(stamps, stamp))
            for _ in range(np.searchsorted(wanted, number) - place):  # lost
                yield _upright(frame if last is None else last, notes)
                place += 1
            last = frame
            for _ in range(np.searchsorted(wanted, number, side="right") - place):
                yield _upright(frame, notes)
                place += 1
            if place == len(wanted):
                return
    except av.error.FFmpegError:
        pass
    if last is None:
        raise BadInput("cannot be decoded: no frame is whole")
    if "damaged" not in notes:
        notes.append("damaged")


def _upright(frame: av.VideoFrame, notes: list[str]) -> Image.Image:
    turned = frame.rotation % 360
    if turned and f"turned by {turned} degrees" not in notes:
        notes.append(f"turned by {turned} degrees")
    pixels = frame.to_ndarray(format="rgb24")
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, round(turned / 90))))


def _image(stored, number: int) -> Image.Image:
    try:
        return decoding.as_rgb(stored)
    except Exception as error:  # decoders raise many kinds on a corrupt file
        raise BadInput(f"frame {number} cannot be decoded: {first_line(error)}") from error


def _finished(images: Iterator[Image.Image], processor, rate: float, notes: list[str]) -> Video:
    """Without bars, in the size that the processor gives."""
    head, frames, box = [], [], None
    for image in images:
        if box is None:
            head.append(image)
            if len(head) < BARS_OF:
                continue
            box, frames = _begin(head, processor, notes)
            continue
        frames.append(decoding.decode(image.crop(box), processor))
    if box is None and head:
        box, frames = _begin(head, processor, notes)
    if not frames:
        raise BadInput("holds no frame")
    return Video(np.stack(frames), rate, notes)


def _begin(head: list[Image.Image], processor, notes: list[str]) -> tuple[tuple[int, int, int, int], list[np.ndarray]]:
    if len({image.size for image in head}) > 1:
        raise BadInput("holds frames of different sizes")
    box = without_bars(head)
    if box != (0, 0, *head[0].size):
        notes.append("black bars")
    decoding.check_resized((box[2] - box[0], box[3] - box[1]), processor)
    return box, [decoding.decode(image.crop(box), processor) for image in head]


def without_bars(images: Sequence[Image.Image]) -> tuple[int, int, int, int]:
    """(left, upper, right, lower): what is not a black bar in all of the images. Bars are equal, at both sides or above
    and below: compression leaves traces in them that tell the order of the frames."""
    lit = np.max([np.asarray(image).max(2) for image in images], 0) > BLACK
    box = [0, 0, lit.shape[1], lit.shape[0]]
    for axis, side in ((0, lit.shape[1]), (1, lit.shape[0])):
        picture = np.flatnonzero(lit.mean(axis) > LIT)
        if len(picture) == 0:
            continue
        low, high = picture[0], picture[-1] + 1
        outside = np.r_[0:low, high:side]
        dark = not lit.take(outside, 1 - axis).any()
        if dark and low > 0 and abs(low - (side - high)) <= 2 and low <= LARGEST_BAR * side:
            box[axis], box[axis + 2] = low, high
    return tuple(int(value) for value in box)
