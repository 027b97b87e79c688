"""NaN must not turn into a result: every comparison with NaN is false, and argmax returns class 0."""

from __future__ import annotations

from torch import Tensor

from mmssl.errors import BadInput


def finite(values: Tensor, what: str) -> Tensor:
    """`values`, (rows, ...), unchanged. Raises BadInput, which names `what`, if one is NaN or infinite."""
    bad = ~values.isfinite()
    if values.is_floating_point() and bad.any():
        rows = bad.reshape(len(values), -1).any(1) if values.ndim else bad[None]
        first = int(rows.nonzero()[0])
        raise BadInput(
            f"{what}: NaN or infinite in {int(rows.sum())} of {len(rows)} rows, row {first} first; no result is "
            "computed from them. The weights have diverged, or the inputs are not numbers"
        )
    return values
