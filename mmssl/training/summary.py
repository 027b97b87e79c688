"""Summary of a run: its length, losses, evaluations and warnings."""

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
    """Summary of a run. The first of `evaluations` is that of the untrained model (step 0), the last of the trained."""

    step: int = 0
    epoch: int = 0
    samples: int = 0  # of the current epoch so far, over all processes
    samples_seen: int = 0
    seconds: float = 0.0  # of training, without evaluation and saving
    skipped_steps: int = 0
    compiled: str = "no"  # of the method, by torch.compile: no, layers, whole
    loss: float = math.nan  # mean over the last logging_steps steps
    trivial_loss: float | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, what: str, make: Callable[[], Made], otherwise: Made) -> Made:
        """The result of `make`; if it raises, `otherwise` and a warning. For all that describes a finished run: no
        description is worth losing the weights."""
        try:
            return make()
        except Exception as error:  # methods, evaluations and libraries raise many kinds
            self.warnings.append(f"{what} failed: {type(error).__name__}: {first_line(error)}")
            say(f"warning: {self.warnings[-1]}", sys.stderr)
            return otherwise
