"""Clips of handwritten digits that move and bounce off the borders, drawn when they are asked for and stored nowhere.

Moving MNIST: Srivastava et al. 2015, arXiv:1502.04681, section 4.1: two digits in 64 x 64 pixels, of any direction and
speed. A clip is a function of the seed, the epoch and its row. Played backwards, a clip is as likely as it is forwards:
nothing in it tells the direction of time.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws, sources
from mmssl.data.images import decoding, lab
from mmssl.errors import BadInput

SIDE, DIGIT, BOX = 64, 28, 20  # px: of a frame; of a digit with its margin; of the ink alone, as in MNIST
SMALLEST = 16  # px: side of a frame
SPEED = (2.0, 5.0)  # px between two frames, slowest and fastest
LIGHTNESS, CHROMA = 70.0, 55.0  # of the coloured digits, in Lab: of one lightness, so that grey tells no colour
AT_ONCE = 1 << 26  # pixels, of all digits of all frames, that are drawn at once
STREAMS = 16  # draws for each digit of a clip; a method's own streams are small
OF_DIGITS = 1 << 20  # first stream


class MovingDigits(Dataset):
    """
    digits:   (n, digit side, digit side) fp32 in [0, 1]. label: (n,) int64.
    count:    clips in an epoch. frames: of a clip. side: of a frame in pixels; digits and speeds are in proportion.
    together: digits in a clip.
    coloured: each digit of a clip has a colour of its own, all of one lightness; otherwise they are white.
    seed:     None: every epoch has the same clips.
    """

    def __init__(
        self,
        digits: Tensor,
        label: Tensor,
        count: int,
        frames: int,
        side: int = SIDE,
        together: int = 2,
        coloured: bool = False,
        seed: int | None = None,
    ) -> None:
        self.scale, self.side, self.frames, self.together = side / SIDE, side, frames, together
        size = round(DIGIT * self.scale)
        if side < SMALLEST:
            raise BadInput(f"--image_size {side}: moving digits need frames of at least {SMALLEST} pixels")
        self.digits = F.interpolate(digits[:, None], (size, size), mode="bilinear", antialias=True)[:, 0]
        self.label, self.count, self.coloured, self.seed, self.epoch = label, count, coloured, seed, 0
        self.rows = torch.arange(count)

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has other clips."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def keys(self, rows: Tensor) -> Tensor:
        """(rows,) int64. Held-out clips have keys that training does not have."""
        return draws.draw(rows, self.seed, self.epoch) if self.seed is not None else draws.draw(rows, 1 << 40, 0)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """pixel_values: (batch, frames, 3, side, side) uint8. key: (batch,) int64, a function of seed, epoch and row.
        index: (batch,)."""
        rows = torch.as_tensor(indices)
        key = self.keys(rows)
        return {"pixel_values": self.drawn(key)[0], "key": key, "index": rows}

    def masks(self, indices: list[int]) -> Tensor:
        """(batch, frames, side, side) uint8: 0 where there is no digit, else the number of the uppermost, from 1."""
        return self.drawn(self.keys(torch.as_tensor(indices)))[1]

    def labels(self, indices: list[int]) -> Tensor:
        """(batch, together) int64: which digits they are."""
        return self.label[self._chosen(self.keys(torch.as_tensor(indices)))]

    def _draws(self, key: Tensor, which: int) -> Tensor:
        """(batch, together) in [0, 1)."""
        streams = OF_DIGITS + STREAMS * torch.arange(self.together) + which
        return draws.uniform(key[:, None], streams)

    def _chosen(self, key: Tensor) -> Tensor:
        return (len(self.digits) * self._draws(key, 0)).long()

    def places(self, key: Tensor) -> Tensor:
        """(batch, frames, together, 2) int64: row and column of the upper left corner of each digit."""
        room = self.side - self.digits.shape[1]
        angle = 2 * torch.pi * self._draws(key, 1)
        speed = self.scale * (SPEED[0] + (SPEED[1] - SPEED[0]) * self._draws(key, 2))
        velocity = speed[..., None] * torch.stack([angle.sin(), angle.cos()], -1)
        start = 2 * room * torch.stack([self._draws(key, 3), self._draws(key, 4)], -1)
        time = torch.arange(self.frames)[None, :, None, None]
        # where it would be without borders; reflected, it is somewhere in a period of twice the room
        free = (start[:, None] + velocity[:, None] * time) % (2 * room)
        return (room - (free - room).abs()).round().long().clamp(0, room)

    def drawn(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """(pixels, masks): (batch, frames, 3, side, side) uint8; (batch, frames, side, side) uint8."""
        at_once = max(1, AT_ONCE // (self.frames * self.together * self.side**2))
        parts = [self._drawn(some) for some in key.split(at_once)]
        return torch.cat([pixels for pixels, _ in parts]), torch.cat([masks for _, masks in parts])

    def _drawn(self, key: Tensor) -> tuple[Tensor, Tensor]:
        batch, side, size = len(key), self.side, self.digits.shape[1]
        chosen, places = self.digits[self._chosen(key)], self.places(key)
        layers = torch.zeros(batch, self.frames, self.together, side, side)
        along = torch.arange(size)
        rows, columns = (places[..., 0, None] + along)[..., None], (places[..., 1, None] + along)[..., None, :]
        first = torch.arange(batch)[:, None, None, None, None]
        second = torch.arange(self.frames)[:, None, None, None]
        third = torch.arange(self.together)[:, None, None]
        layers[first, second, third, rows, columns] = chosen[:, None].expand(-1, self.frames, -1, -1, -1)
        masks = torch.zeros(batch, self.frames, side, side, dtype=torch.uint8)
        for number, layer in enumerate(layers.unbind(2), start=1):
            masks[layer > 0.5] = number
        if not self.coloured:
            grey = (255 * layers.amax(2)).round().to(torch.uint8)
            return grey[:, :, None].expand(-1, -1, 3, -1, -1).contiguous(), masks
        colours, pixels = self._colours(key), torch.zeros(batch, self.frames, 3, side, side)
        for number, layer in enumerate(layers.unbind(2)):  # a later digit lies above the earlier ones
            pixels = torch.lerp(pixels, colours[:, number, None, :, None, None].expand_as(pixels), layer[:, :, None])
        return (255 * pixels).round().to(torch.uint8), masks

    def _colours(self, key: Tensor) -> Tensor:
        """(batch, together, 3) in [0, 1]: hues as far from each other as they can be, turned by a draw."""
        turn = self._draws(key, 5)[:, :1] + torch.arange(self.together) / self.together
        angle = 2 * torch.pi * turn
        ab = CHROMA * torch.stack([angle.cos(), angle.sin()], -1)
        colours = torch.cat([torch.full_like(ab[..., :1], LIGHTNESS), ab], -1)
        return lab.to_srgb(colours[..., None, None])[..., 0, 0]


def load(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """{"train": (digits, label), "test": ...} of the built-in digits called `name`: (n, 28, 28) fp32 in [0, 1]. Digits
    of other sizes are enlarged to those of MNIST, with its margin."""
    parts = {}
    for part, rows in sources.load(name).items():
        stored = decoding.undecoded(rows, "image")["image"]
        images = torch.stack([torch.from_numpy(np.array(decoding.as_rgb(image))) for image in stored])
        images = images[:, None, ..., 0].float() / 255
        if images.shape[-1] != DIGIT:
            images = F.interpolate(images, (BOX, BOX), mode="bilinear", align_corners=False)
            images = F.pad(images, [(DIGIT - BOX) // 2] * 4)
        parts[part] = images[:, 0], torch.tensor(rows["label"])
    return parts
