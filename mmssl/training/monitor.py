"""Detects a run that is not learning (collapsed features, a metric that shows a failure, a loss no better than trivial)
and words the warning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLES = 256  # of a batch: enough to detect a collapse; takes 20 ms at 768 dimensions
PATIENCE = 3  # windows in a row: a single batch may be an exception
SETTLED = 0.1  # fraction of the run without warnings: features are all similar at initialisation
MIN_EFFECTIVE_RANK = 0.05  # fraction of the largest possible rank
MIN_STD = 0.1  # fraction of 1/sqrt(dim), the standard deviation of features that are uniform on the sphere


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """RankMe, arXiv:2210.02885, eq. 1-2: exp of the entropy of the singular values. In [1, min(batch, dim)].

    features: (batch, dim). They are centred first, so that a constant offset does not count as a dimension.
    """
    features = features.float() - features.float().mean(0)
    singular = torch.linalg.svdvals(features)
    p = singular / singular.sum().clamp_min(1e-12) + 1e-7
    return math.exp(-(p * p.log()).sum().item())


@torch.no_grad()
def normalised_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of the L2-normalised features, in units of 1/sqrt(dim).

    1 if they are uniform on the sphere, 0 if all inputs get the same feature (Chen & He 2020, arXiv:2011.10566, section
    4.1). features: (batch, dim).
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return (unit.std(0).mean() * math.sqrt(features.shape[1])).item()


# metric of a method -> (the method has failed while the metric is below this number, a sentence with its value)
FAILURES = {
    "discriminator_loss": (
        0.05,
        "the discriminator has won: its loss is {:.3f}, it tells every generated image from real ones, and the "
        "generator no longer learns from it. Likely causes: a discriminator that learns faster than the generator "
        "(lower its learning rate), too few training images, which it knows by heart.",
    ),
    "sample_spread": (
        0.2,
        "mode collapse: generated images differ from each other {:.3f} times as much as real ones: the generator makes "
        "nearly the same image of all noise. Likely causes: a generator that learns faster than the discriminator "
        "(lower its learning rate), too small batches.",
    ),
    "code_perplexity": (
        2.0,
        "codebook collapse: the codes in use are {:.3f} in effect, and every image gets nearly the same ones. Likely "
        "causes: learning rate too high, a codebook far from what the encoder gives (raise --restart), inputs all "
        "alike.",
    ),
    "kl": (
        0.1,
        "posterior collapse: the code says {:.3f} nats about an image: the decoder ignores it. Likely causes: --beta "
        "too high, learning rate too high at the start, inputs all alike.",
    ),
}
FAILING = 200  # steps in a row


class FailureWatch:
    """Checks the metrics of every step; warns once of each failure that lasts."""

    def __init__(self) -> None:
        self.streaks, self.warned = dict.fromkeys(FAILURES, 0), set()

    def look(self, rows: Sequence[dict[str, float]], progress: float) -> list[str]:
        """The warnings. rows: the metrics of the steps since the last call. progress: fraction of the run done."""
        sentences = []
        for name, (limit, sentence) in FAILURES.items():
            for row in rows if progress > SETTLED else ():
                self.streaks[name] = self.streaks[name] + 1 if row.get(name, limit) < limit else 0
                if self.streaks[name] == FAILING and name not in self.warned:
                    self.warned.add(name)
                    sentences.append(f"for {FAILING} steps {sentence.format(row[name])}")
        return sentences


class CollapseWatch:
    """Checks the features of each logged window; warns once, after PATIENCE windows in a row of collapsed features."""

    def __init__(self) -> None:
        self.streak, self.warned = 0, False

    def look(self, features: Tensor, progress: float) -> tuple[dict[str, float], str | None]:
        """(two metrics for the log, a warning or None). features: (batch, dim). progress: fraction of the run done."""
        features = features[:SAMPLES]
        if len(features) < 3:
            return {}, None
        values = {"effective_rank": effective_rank(features), "feature_std": normalised_std(features)}
        sentence = collapse(**values, largest_rank=min(features.shape[0] - 1, features.shape[1]))
        self.streak = self.streak + 1 if sentence and progress > SETTLED else 0
        if self.streak < PATIENCE or self.warned:
            return values, None
        self.warned = True
        return values, sentence


def collapse(effective_rank: float, feature_std: float, largest_rank: int) -> str | None:
    """A warning if one of the two is below its threshold, else None."""
    if feature_std < MIN_STD:
        return (
            f"features have collapsed: their spread is {feature_std:.3f} of that of random directions (below "
            f"{MIN_STD}): all inputs get nearly the same feature. Likely causes: learning rate too high, warm-up too "
            "short, no negatives, stop-gradient missing, inputs all alike (check the data and the normalisation)."
        )
    if effective_rank < max(1.5, MIN_EFFECTIVE_RANK * largest_rank):
        return (
            f"features are collapsing: effective rank {effective_rank:.1f} of {largest_rank} possible (below "
            f"{MIN_EFFECTIVE_RANK:.0%}): only a few directions carry information. Likely causes: learning rate or "
            "temperature too high, augmentation so strong or data so uniform that few features tell samples apart."
        )
    return None


def no_better_than_trivial(loss: float, trivial_loss: float) -> str | None:
    """A warning if the final loss is above 99 % of the trivial solution's, else None."""
    if loss < 0.99 * trivial_loss:
        return None
    return (
        f"the run ended at loss {loss:.4f}, no better than the trivial solution's {trivial_loss:.4f}: it has learned "
        "nothing. Train for longer; if that does not help, check that inputs and targets belong together, then the "
        "learning rate."
    )
