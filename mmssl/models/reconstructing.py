"""What the methods share that learn to reconstruct images; evaluation.restoration judges them by it."""

from __future__ import annotations

from torch import Tensor

from mmssl.method import Method


class Reconstructing(Method):
    def given(self, pixels: Tensor, key: Tensor) -> Tensor:
        """(batch, 3, height, width): what the encoder gets of normalised pixels; everything, unless a method says
        otherwise."""
        return pixels

    def errors(self, predicted: Tensor, pixels: Tensor, key: Tensor) -> Tensor:
        """(batch,): the mean squared error of each reconstruction, in units of normalised pixels. predicted, pixels:
        (batch, 3, height, width)."""
        return (predicted - pixels).square().mean((1, 2, 3))
