"""Summary of a run: its length, losses, evaluations and warnings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Summary:
    """Summary of a run. The first of `evaluations` is that of the untrained model (step 0), the last of the trained."""

    step: int = 0
    epoch: int = 0
    samples: int = 0  # of the current epoch so far, over all processes
    samples_seen: int = 0
    seconds: float = 0.0  # of training, without evaluation and saving
    skipped_steps: int = 0
    loss: float = math.nan  # mean over the last logging_steps steps
    trivial_loss: float | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
