"""A probe while training goes on: k-NN on the features of the encoder as it stands, at each evaluation of the loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from mmssl.arguments import TrainArgs
from mmssl.data import labelled
from mmssl.evaluation.downstream import encoder as encoders
from mmssl.evaluation.downstream.knn import knn
from mmssl.evaluation.downstream.raw_features import NAMES, raw_features
from mmssl.method import Method

MAX_SAMPLES = 2000  # of training and of test data: seconds, not minutes
FIGURE = "knn_accuracy"


class Probed:
    """An evaluation for the loop; where --probe_dataset names labelled data, k-NN beside it.

    The encoder is judged as its users will get it: exported, and read back. So any method will do whose export loads
    through AutoModel.
    """

    def __init__(
        self, evaluate: Callable[[Method], dict[str, float]] | None, args: TrainArgs, method, processor
    ) -> None:
        """Raises BadInput where the data has no labels, or no column that the encoder reads."""
        self.evaluate, self.processor, self.data = evaluate, processor, None
        if args.probe_dataset and PartialState().is_main_process:
            encoder = self._export(method)
            self.modality = encoder.modality
            self.data = labelled.load(args.probe_dataset, encoder.modality, encoder.processor, max_samples=MAX_SAMPLES)

    def __call__(self, method: Method) -> dict[str, float]:
        values = self.evaluate(method) if self.evaluate else {}
        if self.data is None:
            return values
        encoder = self._export(method).to(next(method.parameters()).device)
        x, z = (encoders.features(encoder, part, cached=False)[0].numpy() for part in self.data)
        return values | {FIGURE: self._accuracy(knn(x, self.data[0].label.numpy(), z))}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Columns for the results: raw features under the same k-NN, and always the most frequent class."""
        if self.data is None:
            return {}
        train, test = self.data
        x, z = raw_features(train, test)
        most_frequent = torch.bincount(train.label).argmax().expand(len(test)).numpy()
        return {
            NAMES[self.modality]: {FIGURE: self._accuracy(knn(x, train.label.numpy(), z))},
            "chance": {FIGURE: self._accuracy(most_frequent)},
        }

    def beside(self, results: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """`results`, with the baselines of the probe in their columns."""
        for column, values in self.baselines().items():
            results[column] = results.get(column, {}) | values
        return results

    def _accuracy(self, predicted) -> float:
        return 100 * (torch.from_numpy(predicted) == self.data[1].label).float().mean().item()

    def _export(self, method: Method) -> encoders.Encoder:
        with tempfile.TemporaryDirectory() as place, _quiet():
            method.save_pretrained(place)
            self.processor.save_pretrained(place)
            return encoders.load(place)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of saving and loading inside the bar of the training, and no list of the heads left behind."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
