"""What a run was: its length, its losses, its evaluations, its warnings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Summary:
    """What a run was. `evaluations` begins with the untrained model (step 0) and ends with the trained one."""

    step: int = 0
    epoch: int = 0
    samples: int = 0  # into the current epoch, over all processes
    samples_seen: int = 0
    seconds: float = 0.0  # training alone: neither evaluation nor saving
    skipped_steps: int = 0
    loss: float = math.nan  # mean over the last logging_steps steps
    trivial_loss: float | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
