"""Video files made for tests."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import av
import numpy as np

CODECS = {
    "mp4": "libx264",
    "webm": "libvpx",
    "avi": "mpeg4",
    "gif": "gif",
    "matroska": "libx264",
    "mpegts": "mpeg2video",
}
TURNED = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # a quarter, clockwise


def frames(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """(count, height, width, 3) uint8: a bright square that moves to the right on grey, brighter in each frame."""
    made = np.full((count, height, width, 3), 60, np.uint8)
    for i, frame in enumerate(made):
        frame[8:24, 2 + 3 * (i % 13) : 18 + 3 * (i % 13)] = 120 + 10 * (i % 13)
    return made


def video(
    images: np.ndarray | None = None,
    form: str = "mp4",
    rate: int = 10,
    times: Sequence[int] | None = None,
    sound: bool = False,
) -> bytes:
    """The bytes of a file. times: when each frame is shown, in units of 1 / rate."""
    images, file = frames() if images is None else images, io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(CODECS[form], rate=rate)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "rgb8" if form == "gif" else "yuv420p"
        voice = container.add_stream("aac", rate=8000) if sound else None
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = (times or range(len(images)))[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if voice:
            _hum(container, voice)
    return file.getvalue()


def sound_alone() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        _hum(container, container.add_stream("aac", rate=8000))
    return file.getvalue()


def _hum(container, stream) -> None:
    wave = np.sin(np.arange(8000) / 5).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def turned(content: bytes) -> bytes:
    """An MP4 whose header says that it is shown turned by a quarter, clockwise."""
    start = content.index(b"tkhd") + 44
    return content[:start] + TURNED + content[start + 36 :]
