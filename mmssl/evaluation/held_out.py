"""The interface of every evaluation, and the simplest one: the method's own loss and metrics on held-out data. The loop
calls an evaluation while it trains; the results, figures and text at the end go on the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from mmssl.method import Method

Columns = dict[str, dict[str, float]]  # "trained" or a baseline -> name of a result -> its value


class Evaluation:
    """Define `__call__`; the other methods are optional.

    units: units of the results, a sentence for the card.
    """

    units = ""

    def __call__(self, method: Method) -> dict[str, float]:
        """The results of the unwrapped method, in evaluation mode and without gradients."""
        return {}

    def baselines(self, method: Method) -> Columns:
        """Results of models that need no training of the method, under the names that `__call__` uses."""
        return {}

    def draw(self, method: Method, directory: Path, results: Columns) -> dict[str, str]:
        """Write figures of the trained method to `directory`; returns file name -> caption."""
        return {}

    def text(self, method: Method) -> str:
        """Sample outputs of the trained method, as Markdown: for the card, and printed at the end."""
        return ""


class HeldOut(Evaluation):
    """
    held_out: map-style; its `__getitems__` returns the method's batches, the same at every call.
    chance:   metrics of a method that ignores its input.
    """

    units = "Loss and metrics of the method's own task."

    def __init__(self, held_out: Dataset, batch_size: int, chance: dict[str, float] | None = None) -> None:
        self.held_out, self.batch_size, self.chance = held_out, min(batch_size, len(held_out)), chance or {}

    @torch.no_grad()
    def __call__(self, method: Method) -> dict[str, float]:
        return self._mean(method)[0]

    @torch.no_grad()
    def baselines(self, method: Method) -> Columns:
        trivial = self._mean(method)[1]
        ignored = ({} if trivial is None else {"loss": trivial}) | self.chance
        return {"input ignored": ignored} if ignored else {}

    def _mean(self, method: Method) -> tuple[dict[str, float], float | None]:
        """(results, trivial loss), means over the held-out batches. A last, smaller batch is left out: if the loss
        compares samples with each other, it would be an easier task."""
        device, results, trivial = next(method.parameters()).device, [], []
        for first in range(0, len(self.held_out) - self.batch_size + 1, self.batch_size):
            batch = self.held_out.__getitems__(list(range(first, first + self.batch_size)))
            output = method(**{name: value.to(device) for name, value in batch.items() if name != "index"})
            results.append({"loss": output.loss, **output.metrics})
            if output.trivial_loss is not None:
                trivial.append(float(output.trivial_loss))
        mean = {name: torch.stack([r[name].float() for r in results]).mean().item() for name in results[0]}
        return mean, sum(trivial) / len(trivial) if trivial else None
