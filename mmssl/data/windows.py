"""How much of the data that is read where it lies is held in memory, and mixed with each other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

WINDOW = 1 << 28  # stored bytes


class Held:
    """Blocks in memory: those used last, of at most WINDOW bytes and the largest one."""

    def __init__(self, load: Callable[[int], Any], size: np.ndarray) -> None:
        """size: (blocks,) bytes."""
        self.load, self.size, self.blocks = load, size, OrderedDict()

    def __getitem__(self, block: int) -> Any:
        if block not in self.blocks:
            room = WINDOW + int(self.size.max()) - int(self.size[block])
            while self.blocks and int(self.size[list(self.blocks)].sum()) > room:
                self.blocks.popitem(last=False)
            self.blocks[block] = self.load(block)
        self.blocks.move_to_end(block)
        return self.blocks[block]
