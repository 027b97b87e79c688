"""Few-shot classification: a few labels per class, nothing trained.

Nearest class mean on centred features of unit length (SimpleShot, Wang et al. 2019, arXiv:1911.04623, "CL2N").
"""

from __future__ import annotations

import math

import numpy as np
import torch

from mmssl.errors import BadInput

QUERIES = 15  # per class and episode


def large_classes(label: np.ndarray, ways: int, shots: int) -> list[torch.Tensor]:
    """The examples of each class with more than `shots`. Raises BadInput if there are fewer than `ways`."""
    of_class = [torch.from_numpy(np.flatnonzero(label == c)) for c in np.unique(label)]
    of_class = [rows for rows in of_class if len(rows) > shots]
    if len(of_class) < ways:
        raise BadInput(
            f"--ways {ways} --shots {shots}: only {len(of_class)} classes have more than {shots} test examples"
        )
    return of_class


def few_shot(
    features: np.ndarray, label: np.ndarray, centre: np.ndarray, ways: int, shots: int, episodes: int, seed: int = 0
) -> tuple[float, float]:
    """(mean accuracy over episodes, half of its 95 % confidence interval), in per cent.

    features: (examples, width), from which classes, shots and queries are drawn. centre: (width,), the mean of the
    training features. Raises BadInput if there are too few classes or examples.
    """
    of_class = large_classes(label, ways, shots)
    z = torch.nn.functional.normalize(torch.from_numpy(np.asarray(features - centre, dtype=np.float32)), dim=1)
    queries = min(QUERIES, min(len(rows) for rows in of_class) - shots)
    generator, accuracies = torch.Generator().manual_seed(seed), []
    for _ in range(episodes):
        classes = torch.randperm(len(of_class), generator=generator)[:ways].tolist()
        drawn = [of_class[c][torch.randperm(len(of_class[c]), generator=generator)[: shots + queries]] for c in classes]
        shown = z[torch.stack(drawn)]  # (ways, shots + queries, width)
        means = shown[:, :shots].mean(1)
        nearest = torch.cdist(shown[:, shots:].flatten(0, 1), means).argmin(1)
        accuracies.append((nearest == torch.arange(ways).repeat_interleave(queries)).float().mean().item())
    spread = np.std(accuracies, ddof=1) if episodes > 1 else 0.0
    return 100 * float(np.mean(accuracies)), 100 * 1.96 * float(spread) / math.sqrt(episodes)
