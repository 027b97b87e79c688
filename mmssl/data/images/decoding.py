"""Images: decoded once to uint8; augmented and normalised a batch at a time, as tensor operations on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmssl.errors import BadInput

Data = datasets.Dataset | datasets.IterableDataset

MEAN = [0.48145466, 0.4578275, 0.40821073]  # of CLIP's training data: what CLIPImageProcessor expects
STD = [0.26862954, 0.26130258, 0.27577711]


def undecoded(data: Data, column: str) -> Data:
    """The same rows, with {bytes, path} in the image column. Raises BadInput where it cannot hold images."""
    try:
        return data.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"--image_column {column} holds {data.features[column]}, not images or paths") from error


def as_rgb(image: Image.Image | dict | bytes | str) -> Image.Image:
    """Turned upright, transparency composited on white. A dict is what `datasets.Image(decode=False)` gives.

    Raises what Pillow raises (OSError, ValueError, SyntaxError, Image.DecompressionBombError) where it cannot read it.
    """
    if not isinstance(image, Image.Image):
        image = {"path": image} if isinstance(image, str) else {"bytes": image} if isinstance(image, bytes) else image
        image = datasets.Image().decode_example({"bytes": None, "path": None} | image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def decode(image: Image.Image | dict | bytes | str, processor) -> np.ndarray:
    """(3, height, width) uint8: what the image processor of a checkpoint makes of it, short of rescaling to floats.

    So training sees, to the bit, the pixels that a user of the exported processor will show the model.
    """
    pixels = processor(as_rgb(image), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return pixels.astype(np.uint8, copy=False)


def shape(processor) -> tuple[int, int]:
    """(height, width) of what an image processor of transformers leaves. Raises BadInput where it is not fixed."""
    wide, high = (decode(Image.new("RGB", size), processor).shape for size in ((64, 48), (48, 64)))
    if wide != high or len(wide) != 3:
        raise BadInput(f"{type(processor).__name__} gives images of several shapes, {wide} and {high}; one is needed")
    return wide[1:]


def unit_range(pixels: Tensor) -> Tensor:
    """uint8 -> float in [0, 1]."""
    return pixels.float() / 255


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(batch, channels, height, width) in [0, 1], to zero mean and unit deviation of the channels."""
    shape = (1, -1, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


class Affine(nn.Module):
    """Each image turned, scaled, moved and mirrored by its own draw; what comes in from outside repeats the border.

    rotation: degrees, either way. scale: of the visible part, (smallest, largest). translation: share of the side,
    either way. flip: probability of a mirror image.
    """

    def __init__(
        self,
        rotation: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        translation: float = 0.0,
        flip: float = 0.0,
    ) -> None:
        super().__init__()
        self.rotation, self.scale, self.translation, self.flip = rotation, scale, translation, flip

    def forward(self, pixels: Tensor) -> Tensor:
        n, device = len(pixels), pixels.device
        angle = _uniform(n, -self.rotation, self.rotation, device) * (math.pi / 180)
        scale = _uniform(n, math.log(self.scale[0]), math.log(self.scale[1]), device).exp()
        mirror = 1 - 2 * (torch.rand(n, device=device) < self.flip).float()
        # output coordinates in [-1, 1] -> where to look in the input; a shift of 2 is one whole side
        matrix = torch.stack(
            [
                torch.stack([scale * mirror * angle.cos(), -scale * angle.sin()], dim=1),
                torch.stack([scale * mirror * angle.sin(), scale * angle.cos()], dim=1),
            ],
            dim=1,
        )
        shift = 2 * _uniform((n, 2, 1), -self.translation, self.translation, device)
        return _sample(pixels, torch.cat([matrix, shift], dim=2))


class RandomResizedCrop(nn.Module):
    """A random rectangle of each image, stretched to the whole (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    scale: share of the area. ratio: width / height. flip: probability of a mirror image.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        super().__init__()
        self.scale, self.ratio, self.flip = scale, ratio, flip

    def forward(self, pixels: Tensor) -> Tensor:
        n, device = len(pixels), pixels.device
        area = _uniform(n, *self.scale, device)
        ratio = _uniform(n, math.log(self.ratio[0]), math.log(self.ratio[1]), device).exp()
        wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        mirror = 1 - 2 * (torch.rand(n, device=device) < self.flip).float()
        zero = torch.zeros_like(wide)
        # anywhere that keeps the rectangle inside
        x, y = (_uniform(n, -1, 1, device) * (1 - side) for side in (wide, high))
        rows = [torch.stack([wide * mirror, zero, x], dim=1), torch.stack([zero, high, y], dim=1)]
        return _sample(pixels, torch.stack(rows, dim=1))


class ColourJitter(nn.Module):
    """Brightness, contrast and saturation of each image, each by its own draw of up to `strength` either way."""

    def __init__(self, strength: float = 0.2) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, pixels: Tensor) -> Tensor:
        shape, s = (len(pixels), 1, 1, 1), self.strength
        pixels = pixels * _uniform(shape, 1 - s, 1 + s, pixels.device) + _uniform(shape, -s, s, pixels.device)
        grey = pixels.mean(dim=1, keepdim=True)
        return torch.lerp(grey, pixels, _uniform(shape, 1 - 2 * s, 1 + 2 * s, pixels.device)).clamp_(0, 1)


def _uniform(shape: int | tuple, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(shape, device=device) * (high - low) + low


def _sample(pixels: Tensor, matrix: Tensor) -> Tensor:
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
