"""Decodes recordings, and resamples them to one sampling rate."""

from __future__ import annotations

import io
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    import datasets


def read(data: datasets.Dataset, column: str, sampling_rate: int, max_seconds: float) -> list[np.ndarray | str]:
    """For each row, (samples,) float32, mono, cut to max_seconds; or a string that says why it cannot be read.

    column: datasets.Audio, or {bytes, path}, or paths; WAV, FLAC, OGG, MP3. sampling_rate: in Hz. Raises BadInput
    without soundfile.
    """
    import datasets

    try:
        import soundfile
    except ImportError as error:
        raise BadInput("reading audio needs the package soundfile: pip install soundfile") from error
    if isinstance(data.features[column], datasets.Audio):
        data = data.cast_column(column, datasets.Audio(decode=False))
    waves: list[np.ndarray | str] = []
    for stored in data[column]:
        stored = {"path": stored} if isinstance(stored, str) else stored or {}
        name = stored.get("path") or ""
        try:
            content = stored.get("bytes")
            if content == b"" or (content is None and not name):
                raise BadInput("holds no recording")
            source = name if content is None else io.BytesIO(content)
            wave, rate = soundfile.read(source, dtype="float32", always_2d=True)
            wave = wave.mean(1)[: round(min(max_seconds * rate, len(wave)))]
            if not len(wave):
                raise BadInput("holds no samples")
            if not np.isfinite(wave).all():
                raise BadInput("holds samples that are not finite")
            common = gcd(rate, sampling_rate)
            if rate != sampling_rate:
                from scipy.signal import resample_poly  # here: the import takes half a second

                wave = resample_poly(wave, sampling_rate // common, rate // common).astype(np.float32)
            waves.append(wave)
        except BadInput as error:
            waves.append(f"{name} {error}".strip())
        except Exception as error:  # decoders raise many kinds on a corrupt file
            waves.append(f"{name} {type(error).__name__}: {first_line(error)}".strip())
    return waves
