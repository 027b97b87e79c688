"""Synthetic voices, made at run time: recordings of labelled vowels without a download, for trying things out.

Source-filter synthesis (Fant 1960): a pulse train at the speaker's pitch, filtered by resonances at the formants of the
vowel, which are those of American men (Peterson & Barney 1952, table II) scaled by the speaker's vocal tract length.
Each recording holds one vowel two or three times, each after a hiss. Far easier than human speech.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from mmssl.errors import BadInput

RATE = 8000  # Hz
VOWELS = {  # formants in Hz: Peterson & Barney 1952, table II, men
    "i": (270, 2290, 3010),
    "e": (530, 1840, 2480),
    "a": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
SPEAKERS = 10  # the last two are held out
TAKES = 10  # recordings of each vowel by each speaker
BANDWIDTHS = (60, 90, 150)  # Hz, of the formants
LICENCE = "Synthetic: made by mmssl.data.built_in.voices from formant tables; no human recordings."

LOUDEST, SOFTEST = 0.0, 10.0  # dB of the signal above the noise, in the noisy recordings
HUM = 100  # Hz

CARD = """---
license: cc0-1.0
task_categories: [audio-classification]
pretty_name: Synthetic voices
---
# Synthetic voices

Synthetic recordings of 5 vowels, by 8 voices for training and 2 other voices held out ({contents}): `audio` (FLAC),
`sampling_rate`, `label` (the vowel), `speaker`. Made by `mmssl.data.built_in.voices` with source-filter synthesis; no
human recordings.
"""


def build(directory: Path, noisy: bool = False) -> None:
    """Write the training and test Parquet files and README.md, all or nothing. The data is the same every time. noisy:
    see `in_noise`."""
    from datasets import Value

    from mmssl.data.audio import parquet

    try:
        import soundfile
    except ImportError as error:
        raise BadInput("the synthetic voices are written with soundfile: pip install soundfile") from error
    parts: dict[str, list[dict]] = {"train": [], "test": []}
    for speaker in range(SPEAKERS):
        for vowel in VOWELS:
            for take in range(TAKES):
                buffer = io.BytesIO()
                wave = recording(speaker, vowel, take)
                soundfile.write(buffer, in_noise(wave, speaker, vowel, take) if noisy else wave, RATE, format="FLAC")
                row = {"audio": {"bytes": buffer.getvalue(), "path": f"{vowel}_{speaker}_{take}.flac"}}
                row |= {"label": vowel, "speaker": f"voice {speaker}"}
                parts["test" if speaker >= SPEAKERS - 2 else "train"].append(row)
    columns = {"label": Value("string"), "speaker": Value("string")}
    parquet.write(directory, parts, columns, CARD)


def build_noisy(directory: Path) -> None:
    """The same recordings in noise: another domain, for recipes/domain_adaptation.py."""
    build(directory, noisy=True)


def in_noise(wave: np.ndarray, speaker: int, vowel: str, take: int) -> np.ndarray:
    """(samples,) float32 in [-1, 1]: the recording in hiss and hum, SOFTEST to LOUDEST."""
    rng = np.random.default_rng([1, speaker, list(VOWELS).index(vowel), take])
    hum = np.sign(np.sin(2 * np.pi * (HUM * np.arange(len(wave)) / RATE + rng.uniform())))
    noise = rng.normal(size=len(wave)) + rng.uniform(0.3, 1.0) * hum
    ratio = 10 ** (-rng.uniform(LOUDEST, SOFTEST) / 20)
    mixed = wave + ratio * wave.std() / noise.std() * noise
    return (mixed * 0.9 / np.abs(mixed).max()).astype(np.float32)


def recording(speaker: int, vowel: str, take: int) -> np.ndarray:
    """(samples,) float32 in [-1, 1], about a second. speaker: counted from 0."""
    rng = np.random.default_rng([speaker, list(VOWELS).index(vowel), take])
    pitch, tract = pitch_and_tract(speaker)
    parts = [_noise(rng, rng.uniform(0.02, 0.1), 0.002)]
    for _ in range(rng.integers(2, 4)):
        parts += [_noise(rng, rng.uniform(0.03, 0.09), 0.05), _vowel(rng, pitch, tract, vowel)]
        parts += [_noise(rng, rng.uniform(0.02, 0.1), 0.002)]
    wave = np.concatenate(parts)
    return (rng.uniform(0.2, 0.9) * wave / np.abs(wave).max()).astype(np.float32)


def pitch_and_tract(speaker: int) -> tuple[float, float]:
    """(pitch in Hz, vocal tract length relative to an average man's). Unlike in people the two are not correlated: one
    must not reveal the other."""
    return 90 * 2 ** (speaker * 7 % SPEAKERS / 6), 0.88 + 0.3 * (speaker * 3 % SPEAKERS) / SPEAKERS


def _vowel(rng: np.random.Generator, pitch: float, tract: float, vowel: str) -> np.ndarray:
    from scipy.signal import lfilter

    n = int(rng.uniform(0.15, 0.3) * RATE)
    # the pitch falls or rises slightly, with jitter
    hertz = pitch * rng.uniform(0.94, 1.06) * np.linspace(1, rng.uniform(0.85, 1.1), n)
    phase = np.cumsum(hertz * (1 + 0.01 * np.cumsum(rng.normal(size=n)) / np.sqrt(n))) / RATE
    wave = np.diff(np.floor(phase), prepend=0.0)  # one pulse per period
    wave = lfilter([1.0], [1.0, -0.95], wave) + 0.003 * rng.normal(size=n)  # glottal low-pass, and breath noise
    for formant, bandwidth in zip(VOWELS[vowel], BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * bandwidth / RATE)
        angle = 2 * np.pi * min(formant * rng.uniform(0.94, 1.06) / tract, 0.47 * RATE) / RATE
        wave = lfilter([1.0 - radius], [1.0, -2 * radius * np.cos(angle), radius**2], wave)
    fade = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.02 * RATE))
    return fade * wave / np.abs(wave).max() + 0.002 * rng.normal(size=n)


def _noise(rng: np.random.Generator, seconds: float, loudness: float) -> np.ndarray:
    return loudness * rng.normal(size=int(seconds * RATE))
