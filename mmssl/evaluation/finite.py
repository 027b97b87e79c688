"""Numbers that are none must not become a figure: compared with NaN everything is false, and argmax gives class 0."""

from __future__ import annotations

from torch import Tensor

from mmssl.errors import BadInput


def finite(values: Tensor, what: str) -> Tensor:
    """`values` as they are, (rows, ...). Raises BadInput, which names `what`, where one is NaN or infinite."""
    bad = ~values.isfinite()
    if values.is_floating_point() and bad.any():
        rows = bad.reshape(len(values), -1).any(1) if values.ndim else bad[None]
        first = int(rows.nonzero()[0])
        raise BadInput(
            f"{what}: NaN or infinite in {int(rows.sum())} of {len(rows)} rows, row {first} first; no figure is "
            "made of them. The weights have diverged, or the inputs are not numbers"
        )
    return values
