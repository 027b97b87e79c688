"""What a run was: its length, its losses, its evaluations, its warnings."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from mmssl.errors import first_line
from mmssl.plain_text import say

Made = TypeVar("Made")


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

    def attempt(self, what: str, make: Callable[[], Made], otherwise: Made) -> Made:
        """What `make` gives. Where it fails: `otherwise`, and a warning. For what describes a run that has ended: its
        weights are worth more than any description."""
        try:
            return make()
        except Exception as error:  # whatever a method, an evaluation or a library can raise
            self.warnings.append(f"{what} failed: {type(error).__name__}: {first_line(error)}")
            say(f"warning: {self.warnings[-1]}", sys.stderr)
            return otherwise
