"""The synthetic voices are what they are said to be: each has its pitch, each vowel its formants; no two are alike."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate import PartialState
from scipy.signal import lfilter

from mmssl.data import sources
from mmssl.data.audio import recordings
from mmssl.data.built_in import voices
from mmssl.data.built_in.voices import RATE, SPEAKERS, TAKES, VOWELS


@pytest.fixture(scope="module")
def rows():
    PartialState(cpu=True)
    return sources.load("voices")


def middle(vowel: str, speaker: int = 0, take: int = 0) -> np.ndarray:
    """150 ms of a steady vowel."""
    pitch, tract = voices.pitch_and_tract(speaker)
    wave = voices._vowel(np.random.default_rng(take), pitch, tract, vowel)
    return wave[len(wave) // 2 - 600 : len(wave) // 2 + 600]


def test_two_voices_are_held_out_and_every_vowel_is_said_as_often(rows):
    train, test = rows["train"], rows["test"]
    assert (len(train), len(test)) == ((SPEAKERS - 2) * len(VOWELS) * TAKES, 2 * len(VOWELS) * TAKES)
    assert not set(train["speaker"]) & set(test["speaker"]) and len(set(train["speaker"])) == SPEAKERS - 2
    for part in rows.values():
        said = list(zip(part["speaker"], part["label"], strict=True))
        assert {said.count(pair) for pair in said} == {TAKES}


def test_recordings_are_the_same_each_time_and_no_two_of_them_alike():
    first = voices.recording(3, "a", 2)
    assert np.array_equal(first, voices.recording(3, "a", 2)) and first.dtype == np.float32
    for other in (voices.recording(3, "a", 1), voices.recording(3, "o", 2), voices.recording(4, "a", 2)):
        n = min(len(first), len(other))
        assert abs(np.corrcoef(first[:n], other[:n])[0, 1]) < 0.3


def test_they_are_about_a_second_long_and_neither_silent_nor_clipped():
    for speaker in range(SPEAKERS):
        wave = voices.recording(speaker, "a", 0)
        assert 0.4 * RATE < len(wave) < 1.6 * RATE and 0.2 <= np.abs(wave).max() <= 0.9


def test_each_voice_has_a_pitch_of_its_own():
    wanted = [voices.pitch_and_tract(speaker)[0] for speaker in range(SPEAKERS)]
    for speaker, hertz in enumerate(wanted):
        wave = middle("a", speaker)
        alike = np.correlate(wave, wave, "full")[len(wave) - 1 :]
        lags = np.arange(int(RATE / hertz / 1.4), int(RATE / hertz * 1.4))  # else an octave off, now and then
        assert RATE / lags[alike[lags].argmax()] == pytest.approx(hertz, rel=0.2)  # it falls or rises by up to 15 %
    assert len(set(wanted)) == SPEAKERS


def test_neither_pitch_nor_tract_gives_the_other_away():
    pitch, tract = np.array([voices.pitch_and_tract(speaker) for speaker in range(SPEAKERS)]).T
    assert abs(np.corrcoef(np.log(pitch), tract)[0, 1]) < 0.5


def test_a_vowel_is_loudest_around_its_formants():
    def envelope(vowel: str) -> np.ndarray:
        """Of the spectrum, in 4 Hz steps: linear prediction of order 10."""
        wave = np.diff(middle(vowel)) * np.hanning(1199)
        alike = np.correlate(wave, wave, "full")[len(wave) - 1 :][:11]
        matrix = alike[np.abs(np.subtract.outer(np.arange(10), np.arange(10)))]
        coefficients = np.linalg.solve(matrix + 1e-6 * alike[0] * np.eye(10), alike[1:])
        impulse = lfilter([1.0], np.r_[1.0, -coefficients], np.r_[1.0, np.zeros(1999)])
        return 20 * np.log10(np.abs(np.fft.rfft(impulse, 2000)))

    _, tract = voices.pitch_and_tract(0)
    for vowel, formants in VOWELS.items():
        second = envelope(vowel)[round(formants[1] / tract / 4)]
        for other, theirs in VOWELS.items():
            if abs(theirs[1] - formants[1]) > 500:
                assert second > envelope(other)[round(formants[1] / tract / 4)] + 3, (vowel, other)  # dB


def test_the_recipe_reads_all_of_them(rows):
    data = recordings.Recordings(recordings.load("voices", speaker="speaker")["test"], RATE, 5120, 2000, speakers=True)
    assert len(data) == len(rows["test"]) and not data.unusable and data.speaker.unique().tolist() == [0, 1]


def test_the_card_says_synthetic_and_the_licence():
    sources.load("voices")
    card = (sources.home() / "voices" / "README.md").read_text()
    assert "license: cc0-1.0" in card and "Synthetic recordings" in card and "human recordings" in card
    assert "train: 400 recordings" in card and "test: 100 recordings" in card


def test_noisy_recordings_are_the_clean_ones_in_noise_of_up_to_the_same_power():
    for take in range(3):
        clean, noisy = voices.recording(0, "a", take), voices.in_noise(voices.recording(0, "a", take), 0, "a", take)
        assert np.abs(noisy).max() == pytest.approx(0.9) and len(noisy) == len(clean)
        scale = (noisy @ clean) / (clean @ clean)
        ratio = 20 * np.log10((scale * clean).std() / (noisy - scale * clean).std())
        assert voices.LOUDEST - 1 < ratio < voices.SOFTEST + 1
