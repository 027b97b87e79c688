"""Says in words when a run is not learning: collapsed features, a loss no better than trivial."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLES = 256  # of a batch: enough to see a collapse, and 20 ms at 768 dimensions
PATIENCE = 3  # windows in a row: one batch may be odd
SETTLED = 0.1  # of the run: at initialisation all features are alike
MIN_EFFECTIVE_RANK = 0.05  # share of the largest rank that the features could have
MIN_STD = 0.1  # share of 1/sqrt(dim), the standard deviation of features spread evenly over the sphere


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """RankMe, arXiv:2210.02885, eq. 1-2: exp of the entropy of the singular values. In [1, min(batch, dim)].

    features: (batch, dim). Centred first, so that a constant offset does not pass for a dimension.
    """
    features = features.float() - features.float().mean(0)
    singular = torch.linalg.svdvals(features)
    p = singular / singular.sum().clamp_min(1e-12) + 1e-7
    return math.exp(-(p * p.log()).sum().item())


@torch.no_grad()
def normalised_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of the L2-normalised features, in units of 1/sqrt(dim).

    1 where they spread evenly over the sphere, 0 where all inputs get one feature (Chen & He 2020, arXiv:2011.10566,
    section 4.1).
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return (unit.std(0).mean() * math.sqrt(features.shape[1])).item()


class CollapseWatch:
    """Looks at the features of each logged window; speaks once, when they have been too alike for PATIENCE windows."""

    def __init__(self) -> None:
        self.streak, self.said = 0, False

    def look(self, features: Tensor, share_done: float) -> tuple[dict[str, float], str | None]:
        """The two figures for the log, and a sentence when it is time for one. share_done: of the run, in [0, 1]."""
        features = features[:SAMPLES]
        if len(features) < 3:
            return {}, None
        values = {"effective_rank": effective_rank(features), "feature_std": normalised_std(features)}
        sentence = collapse(**values, largest_rank=min(features.shape[0] - 1, features.shape[1]))
        self.streak = self.streak + 1 if sentence and share_done > SETTLED else 0
        if self.streak < PATIENCE or self.said:
            return values, None
        self.said = True
        return values, sentence


def collapse(effective_rank: float, feature_std: float, largest_rank: int) -> str | None:
    """A sentence when one of the two is below its threshold."""
    if feature_std < MIN_STD:
        return (
            f"features have collapsed: their spread is {feature_std:.3f} of that of random directions (below "
            f"{MIN_STD}): all inputs get nearly the same feature. Likely causes: learning rate too high or warm-up too "
            "short, no negatives or stop-gradient missing, inputs all alike (check the data and the normalisation)."
        )
    if effective_rank < max(1.5, MIN_EFFECTIVE_RANK * largest_rank):
        return (
            f"features are collapsing: effective rank {effective_rank:.1f} of {largest_rank} possible (below "
            f"{MIN_EFFECTIVE_RANK:.0%}): only a few directions carry information. Likely causes: learning rate or "
            "temperature too high, augmentation so strong or data so uniform that few features tell samples apart."
        )
    return None


def no_better_than_trivial(loss: float, trivial_loss: float) -> str | None:
    """A sentence when the final loss is within 1 % of the trivial solution's, or above."""
    if loss < 0.99 * trivial_loss:
        return None
    return (
        f"the run ended at loss {loss:.4f}, no better than the trivial solution's {trivial_loss:.4f}: it has learned "
        "nothing. Check that inputs and targets belong together, then the learning rate."
    )
