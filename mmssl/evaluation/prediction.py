"""How often CPC picks the true future among the candidates, for each number of steps ahead, compared with chance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import Dataset

from mmssl import figures
from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.methods.cpc import CPC, EXCLUDED

BATCH = 64


class Prediction(Evaluation):
    """held_out: map-style; its `__getitems__` returns CPC's batches, the same at every call. ahead: axis label of the
    figure. negatives: where the other candidates come from, for the card."""

    def __init__(self, held_out: Dataset, ahead: str, negatives: str, batch_size: int = BATCH) -> None:
        self.held_out, self.ahead, self.batch_size = held_out, ahead, min(batch_size, len(held_out))
        self.units = f"Per cent: how often the true future gets the highest score of the candidates ({negatives})."
        self.chances: dict[str, float] = {}

    @torch.no_grad()
    def __call__(self, method: CPC) -> dict[str, float]:
        """Accuracy in per cent over held-out positions, 1 to `steps` steps ahead and on average. A last, smaller batch
        is left out: fewer candidates would make it easier."""
        right, chance, asked = (torch.zeros(method.steps) for _ in range(3))
        device = next(method.parameters()).device
        for first in range(0, len(self.held_out) - self.batch_size + 1, self.batch_size):
            batch = self.held_out.__getitems__(list(range(first, first + self.batch_size)))
            batch = {name: value.to(device) for name, value in batch.items() if name != "index"}
            rows = {"speaker": None} | method.embed(**batch)
            for step, (scores, true, valid) in enumerate(method.scores(**rows, everyone=rows, first=0)):
                finite(scores, f"scores of candidates {step + 1} ahead")
                best = scores.amax(-1, keepdim=True)
                winners = (scores == best).sum(-1)  # ties count in part: before training all scores may be equal
                candidates = (scores > EXCLUDED).sum(-1).clamp(min=1).float()  # none if all sequences have ended
                found = (scores.gather(-1, true[..., None]) == best)[..., 0] / winners
                right[step] += (found * valid).sum().cpu()
                chance[step] += (valid / candidates).sum().cpu()
                asked[step] += valid.sum().cpu()
        self.chances = _named(100 * chance / asked.clamp(min=1))
        return _named(100 * right / asked.clamp(min=1))

    def baselines(self, method: CPC) -> Columns:
        if not self.chances:
            self(method)
        return {"chance": self.chances}

    def draw(self, method: CPC, directory: Path, results: Columns) -> dict[str, str]:
        curves = {
            name: [values[f"accuracy_{k}_ahead"] for k in range(1, method.steps + 1)]
            for name, values in results.items()
            if "accuracy" in values
        }
        figures.curves(curves, self.ahead, "true future picked, %", ["chance"], directory / "prediction.png")
        return {"prediction.png": "How often the true future is picked, by the number of steps ahead."}


def _named(values: torch.Tensor) -> dict[str, float]:
    each = {f"accuracy_{step}_ahead": value for step, value in enumerate(values.tolist(), 1)}
    return {"accuracy": values.mean().item()} | each
