"""A probe during training: k-NN on the features of the current encoder, at each evaluation of the loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmssl.arguments import TrainArgs
from mmssl.data import labelled
from mmssl.data.built_in import LABELLED
from mmssl.evaluation.downstream import encoder as encoders
from mmssl.evaluation.downstream.knn import knn
from mmssl.evaluation.downstream.raw_features import NAMES, raw_features
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.method import Method

MAX_SAMPLES = 2000  # of training data and of test data, so that it takes seconds
RESULT = "knn_accuracy"
NONE = "none"


class Probed(Evaluation):
    """Another evaluation and, if there is labelled data (--probe_dataset), k-NN in addition.

    The encoder is exported and loaded again, as users would load it, so this works with any method whose export loads
    with AutoModel.
    """

    def __init__(self, evaluation: Evaluation, args: TrainArgs, method: Method, processor) -> None:
        """Raises BadInput if the data has no labels, or no column that the encoder reads."""
        from accelerate import PartialState

        self.evaluation, self.processor, self.data, self.units = evaluation, processor, None, evaluation.units
        name = args.probe_dataset or (args.dataset if args.dataset in LABELLED else NONE)
        if name != NONE:
            self.units = f"{self.units} k-NN: accuracy in per cent.".lstrip()
            if PartialState().is_main_process:
                encoder = self._export(method)
                self.modality = encoder.modality
                self.data = labelled.load(
                    name, encoder.modality, encoder.processor, max_samples=MAX_SAMPLES, frames=encoder.frames
                )

    def __call__(self, method: Method) -> dict[str, float]:
        values = self.evaluation(method)
        if self.data is None:
            return values
        encoder = self._export(method).to(next(method.parameters()).device)
        x, z = (encoders.features(encoder, part, cached=False)[0].numpy() for part in self.data)
        return values | {RESULT: self._accuracy(knn(x, self.data[0].label.numpy(), z))}

    def baselines(self, method: Method) -> Columns:
        """Those of the other evaluation; the same k-NN on raw features; and always the most frequent class."""
        columns = self.evaluation.baselines(method)
        if self.data is None:
            return columns
        train, test = self.data
        x, z = raw_features(train, test)
        most_frequent = torch.bincount(train.label).argmax().expand(len(test)).numpy()
        for name, predicted in (
            (NAMES[self.modality], knn(x, train.label.numpy(), z)),
            ("chance", most_frequent),
        ):
            columns[name] = columns.get(name, {}) | {RESULT: self._accuracy(predicted)}
        return columns

    def draw(self, method: Method, directory: Path, results: Columns) -> dict[str, str]:
        return self.evaluation.draw(method, directory, results)

    def text(self, method: Method) -> str:
        return self.evaluation.text(method)

    def _accuracy(self, predicted) -> float:
        return 100 * (torch.from_numpy(predicted) == self.data[1].label).float().mean().item()

    def _export(self, method: Method) -> encoders.Encoder:
        with tempfile.TemporaryDirectory() as place, _quiet():
            method.save_pretrained(place)
            self.processor.save_pretrained(place)
            return encoders.load(place)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of saving and loading."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
