"""How often a model of masked speech predicts the target of a masked frame of held-out recordings, beside chance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmssl.data.audio.recordings import Recordings
from mmssl.evaluation import heard
from mmssl.evaluation.held_out import Columns, HeldOut
from mmssl.method import Method
from mmssl.models import speech_encoders


class MaskedFrames(HeldOut):
    """held_out: crops, always the same, with keys, so that the same frames are masked. The method's metrics hold
    `accuracy` and `chance`, fractions of the masked frames."""

    units = "Accuracy at masked frames in per cent."

    def __init__(self, held_out: Recordings, batch_size: int) -> None:
        super().__init__(held_out, batch_size)
        self.by_chance: float | None = None

    @torch.no_grad()
    def __call__(self, method: Method) -> dict[str, float]:
        values, _ = self._mean(method)
        self.by_chance = 100 * values.pop("chance")
        return values | {"accuracy": 100 * values["accuracy"]}

    @torch.no_grad()
    def baselines(self, method: Method) -> Columns:
        if self.by_chance is None:
            self(method)
        return {"chance": {"accuracy": self.by_chance}} | super().baselines(method)

    def draw(self, method: Method, directory: Path, results: Columns) -> dict[str, str]:
        model = method.model.cpu()

        def encode(wave: Tensor) -> Tensor:
            samples, _ = speech_encoders.normalised(wave, torch.tensor([wave.shape[1]]))
            return model(samples).last_hidden_state[0]

        return heard.draw(encode, self.held_out, directory)
