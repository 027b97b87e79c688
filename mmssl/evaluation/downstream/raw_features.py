"""Baseline features without training, which any encoder must beat: pixels, tf-idf, log-mel statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mmssl.data.labelled import Images, Labelled, Texts
from mmssl.data.video.examples import Examples
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    from mmssl.evaluation.downstream.knn import Matrix

NAMES = {"image": "raw pixels", "video": "raw pixels", "text": "tf-idf", "audio": "log-mel"}
LARGEST_SIDE = 32  # pixels; larger images are reduced by averaging
WORDS = 20_000
MELS = 40


def raw_features(train: Labelled, test: Labelled) -> tuple[Matrix, Matrix]:
    """(training, test), each (examples, width). tf-idf is sparse and uses the words of the training texts."""
    if isinstance(train.inputs, Texts):
        from sklearn.feature_extraction.text import TfidfVectorizer  # here: the import takes a second

        words = TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), min_df=2 if len(train) > 100 else 1, max_features=WORDS
        )
        try:
            return words.fit_transform(train.inputs.texts), words.transform(test.inputs.texts)
        except ValueError as error:
            raise BadInput(
                f"tf-idf finds no words in the texts ({first_line(error)}): leave raw out of --baselines"
            ) from error
    if isinstance(train.inputs, Images):
        parts = [_pixels(part) for part in (train, test)]
        grey = all((part == part[:, :1]).all() for part in parts)  # one channel if all images are
        return tuple(part[:, : 1 if grey else None].flatten(1).numpy() for part in parts)
    extract = _motion if isinstance(train.inputs, Examples) else _log_mel
    return extract(train), extract(test)


def _pixels(data: Labelled) -> torch.Tensor:
    """(examples, 3, height, width) float32."""
    pixels = data.inputs.pixels[data.inputs.rows].float() / 255
    if max(pixels.shape[2:]) > LARGEST_SIDE:
        pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, LARGEST_SIDE)
    return pixels


def _motion(data: Labelled) -> np.ndarray:
    """(examples, 2 * channels * height * width) float32: the mean frame, and the mean change between frames."""
    rows = []
    for row in range(len(data)):
        pixels = data.inputs.__getitems__([row])["pixel_values"][0].float() / 255
        both = torch.stack([pixels.mean(0), pixels.diff(dim=0).abs().mean(0)])
        if max(both.shape[2:]) > LARGEST_SIDE:
            both = torch.nn.functional.adaptive_avg_pool2d(both, LARGEST_SIDE)
        rows.append(both.flatten())
    return torch.stack(rows).numpy()


def _log_mel(data: Labelled) -> np.ndarray:
    """(examples, 4 * MELS) float32: mean and deviation over time of each band and of its change between frames."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    rate = data.inputs.extractor.sampling_rate
    frame, hop = int(0.025 * rate), int(0.010 * rate)  # 25 ms every 10 ms
    length = 2 ** int(np.ceil(np.log2(frame)))
    filters = mel_filter_bank(length // 2 + 1, MELS, 20.0, rate / 2, rate)
    rows = []
    for wave in data.inputs.recordings:
        wave = np.pad(wave, (0, max(0, length + hop - len(wave))))
        bands = spectrogram(
            wave, window_function(frame, "hann"), frame, hop, length, power=2.0, mel_filters=filters, log_mel="log"
        )
        change = np.diff(bands, axis=1)
        rows.append(np.concatenate([f(part, axis=1) for part in (bands, change) for f in (np.mean, np.std)]))
    return np.stack(rows).astype(np.float32)
