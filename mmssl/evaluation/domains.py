"""Accuracy of an adapted classifier on labelled test data of both domains, and a figure of their features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmssl import figures
from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.data.labelled import Labelled
    from mmssl.methods.domain_adaptation import DomainAdaptation

SHOWN = 400  # examples of each domain in the figure


class Domains(Evaluation):
    """tests: {"source": ..., "target": ...}. label: of the source's training data."""

    units = "Accuracy in per cent on test data of each domain; chance: always the source's most frequent class."

    def __init__(self, tests: dict[str, Labelled], label: Tensor, batch_size: int) -> None:
        self.tests, self.most_frequent, self.batch_size = tests, int(label.bincount().argmax()), batch_size

    @torch.no_grad()
    def __call__(self, method: DomainAdaptation) -> dict[str, float]:
        found = {}
        for domain, data in self.tests.items():
            logits = self._classified(method, data, torch.arange(len(data)))[1]
            found[f"{domain}_accuracy"] = 100 * (logits.argmax(1) == data.label).float().mean().item()
        return found

    def baselines(self, method: DomainAdaptation) -> Columns:
        shares = {name: (data.label == self.most_frequent).float().mean() for name, data in self.tests.items()}
        return {"chance": {f"{domain}_accuracy": 100 * share.item() for domain, share in shares.items()}}

    @torch.no_grad()
    def draw(self, method: DomainAdaptation, directory: Path, results: Columns) -> dict[str, str]:
        features, domains = [], []
        for domain, data in self.tests.items():
            rows = torch.linspace(0, len(data) - 1, min(SHOWN, len(data))).long()
            features.append(self._classified(method, data, rows)[0])
            domains += [domain] * len(rows)
        figures.label_map(torch.cat(features).numpy(), domains, directory / "domains.png")
        return {"domains.png": "Features of test examples of both domains: their first two principal components."}

    def _classified(self, method: DomainAdaptation, data: Labelled, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(features, logits) of these rows, on the CPU."""
        device, parts = next(method.parameters()).device, []
        for chunk in rows.split(self.batch_size):
            inputs = {name: value.to(device) for name, value in data.inputs.__getitems__(chunk.tolist()).items()}
            parts.append([each.float().cpu() for each in method.classify(**inputs)])
        features, logits = (torch.cat(each) for each in zip(*parts, strict=True))
        return features, finite(logits, "logits of the adapted classifier")
