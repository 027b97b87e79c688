"""Follow a patch through a clip: by normalised correlation with where it was, near where it was."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 0.02  # of the sum of all changes: a place without motion may be chosen, too
TIE = 1e-5  # correlations that differ by less are equal: rounding must not choose the place


def most_moving(clips: Tensor, side: int, drawn: Tensor) -> Tensor:
    """(batch, 2) int64: row and column of the upper left corner of a patch of the first frame, drawn by how much it
    changes. clips: (batch, time, 3, height, width) fp32. drawn: (batch,) in [0, 1)."""
    change = (clips[:, 1] - clips[:, 0]).abs().mean(1, keepdim=True)
    within = F.avg_pool2d(change, side, stride=1)[:, 0]
    weight = within.square().flatten(1).double()
    weight = weight + MARGIN * weight.mean(1, keepdim=True) + 1e-12
    total = weight.cumsum(1)
    chosen = torch.searchsorted(total, drawn.double()[:, None] * total[:, -1:], right=True)[:, 0]
    chosen = chosen.clamp(max=weight.shape[1] - 1)
    columns = within.shape[2]
    return torch.stack([chosen // columns, chosen % columns], 1)


@torch.no_grad()
def follow(clips: Tensor, start: Tensor, side: int, reach: int) -> tuple[Tensor, Tensor]:
    """(places (batch, time, 2) int64, upper left corners; scores (batch, time), correlations in [-1, 1], 1 at first).

    In each frame the patch is looked for at most `reach` pixels, up, down, left or right, from where it was before; it
    is then as it looks there. clips: (batch, time, 3, height, width) fp32. start: (batch, 2) int64.
    """
    batch, time, _, height, width = clips.shape
    grey, place = clips.mean(2), start
    highest = torch.stack([torch.full((), length - side, device=clips.device) for length in (height, width)])
    shift = torch.arange(-reach, reach + 1, device=clips.device)
    shifts = torch.cartesian_prod(shift, shift)
    nearest_first = shifts.abs().sum(1).argsort(stable=True)  # of equal scores the least motion
    shifts = shifts[nearest_first]
    known = _normalised(_cut(grey[:, 0], place[:, None], side))
    places, scores = [place], [torch.ones(batch, device=clips.device)]
    for t in range(1, time):
        candidates = torch.minimum((place[:, None] + shifts).clamp(min=0), highest)
        found = _normalised(_cut(grey[:, t], candidates, side))
        with torch.autocast(clips.device.type, enabled=False):  # the same tracks in any precision
            correlation = torch.einsum("bi,bci->bc", known[:, 0], found)
        score = correlation.amax(1)
        which = (correlation >= score[:, None] - TIE).int().argmax(1)  # the first: shifts are sorted
        rows = torch.arange(batch, device=clips.device)
        place, known = candidates[rows, which], found[rows, which][:, None]
        places.append(place)
        scores.append(score)
    return torch.stack(places, 1), torch.stack(scores, 1)


def _cut(frames: Tensor, places: Tensor, side: int) -> Tensor:
    """(batch, places, side * side). frames: (batch, height, width). places: (batch, places, 2)."""
    along = torch.arange(side, device=frames.device)
    rows = (places[..., 0, None] + along)[..., None]
    columns = (places[..., 1, None] + along)[..., None, :]
    image = torch.arange(len(frames), device=frames.device)[:, None, None, None]
    return frames[image, rows, columns].flatten(2)


def _normalised(patches: Tensor) -> Tensor:
    """Of mean zero and unit length; one colour gives zeros."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-6)
