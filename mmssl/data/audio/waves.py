"""Decodes recordings, and resamples them to one sampling rate."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from mmssl.data import regular_files
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    import datasets


MAX_BYTES = 1 << 32  # of a recording's file; a WAV file cannot be larger
MAX_SAMPLES = 1 << 28  # 1.1 GB as float32, before or after resampling: 1.7 hours at 44.1 kHz
RATES = 1_000, 768_000  # Hz: from the lowest that speech is kept at to the highest that converters have
LOUDEST = 4.0  # relative to full scale: decoders of MP3 exceed 1 a little; integers that were stored as floats by far
SILENCE = 1e-4  # peak, relative to full scale; below it a 16-bit recording holds only quantisation noise
BLOCK = 1 << 20  # samples of all channels that are decoded at a time
FINEST = 10_000  # largest term of the ratio of two rates: 767,999 to 16,000 Hz, to the last one, takes 18 seconds


def read(data: datasets.Dataset, column: str, sampling_rate: int, max_seconds: float) -> Iterator[np.ndarray | str]:
    """For each row, (samples,) float32, mono, cut to max_seconds; or a string that says why it cannot be read.

    column: datasets.Audio, or {bytes, path}, or paths; WAV, FLAC, OGG, MP3. sampling_rate: in Hz. Raises BadInput
    without soundfile. Wrong is also what is beyond the limits above.
    """
    import datasets

    try:
        import soundfile  # noqa: F401, said here once, not of every row
    except ImportError as error:
        raise BadInput("reading audio needs the package soundfile: pip install soundfile") from error
    if isinstance(data.features[column], datasets.Audio):
        data = data.cast_column(column, datasets.Audio(decode=False))
    data = data.select_columns(column)
    for row in range(len(data)):  # one at a time: all of them may not fit into memory
        stored = data[row][column]
        stored = {"path": stored} if isinstance(stored, str) else stored or {}
        name = stored.get("path") or ""
        try:
            yield _wave(stored.get("bytes"), name, sampling_rate, max_seconds)
        except BadInput as error:
            yield f"{name} {error}".strip()
        except Exception as error:  # decoders raise many kinds on a corrupt file
            yield f"{name} {type(error).__name__}: {first_line(error)}".strip()


def _wave(content: bytes | None, path: str, sampling_rate: int, max_seconds: float) -> np.ndarray:
    import soundfile

    if content == b"" or (content is None and not path):
        raise BadInput("holds no recording")
    if content is None:
        regular_files.check(path, MAX_BYTES)
    with soundfile.SoundFile(path if content is None else io.BytesIO(content)) as file:
        rate = file.samplerate
        check_rate(rate)
        longest = MAX_SAMPLES * min(1, rate / sampling_rate)
        frames = file.frames if max_seconds == inf else round(min(max_seconds * rate, file.frames))
        if file.frames >= 2**62:
            raise BadInput("does not say how long it is; store it again (ffmpeg -i in.flac out.flac)")
        if frames > longest:
            raise BadInput(f"is longer than {longest / rate / 60:,.0f} minutes; cut it into several")
        wave, filled, loudest = np.empty(frames, np.float32), 0, 0.0
        while filled < frames:  # in parts: a thousand channels take a thousand times the memory of their mean
            part = file.read(min(frames - filled, max(1, BLOCK // file.channels)), dtype="float32", always_2d=True)
            if not len(part):  # the header says more than there is
                break
            wave[filled : filled + len(part)] = part.mean(1)
            filled, loudest = filled + len(part), max(loudest, float(np.abs(part).max()))
    wave = wave[:filled]
    if not len(wave):
        raise BadInput("holds no samples")
    if not np.isfinite(wave).all():
        raise BadInput("holds samples that are not finite")
    if loudest > LOUDEST:
        raise BadInput(f"holds samples up to {loudest:,.0f}, not in [-1, 1]; divide them by 32,768 if they had 16 bits")
    if np.abs(wave).max() < SILENCE <= loudest:
        raise BadInput("is silent after its channels were mixed: they cancel each other; store one of them alone")
    if rate != sampling_rate:
        from scipy.signal import resample_poly  # here: the import takes half a second

        ratio = Fraction(sampling_rate, rate)
        ratio = ratio.limit_denominator(max(1, int(FINEST / max(1, ratio))))
        wave = resample_poly(wave, ratio.numerator, ratio.denominator).astype(np.float32)
    return wave


def check_rate(rate: int) -> None:
    """Raises BadInput, whose message continues the file's name, for one (in Hz) that no recording has: to resample from
    1 Hz or 1 GHz takes gigabytes."""
    if not RATES[0] <= rate <= RATES[1]:
        raise BadInput(f"says {rate:,} Hz, which is not between {RATES[0]:,} and {RATES[1]:,}")
