"""Crops that data workers cut from images as they are stored, in full resolution; the device does the rest of a view.

A crop of a fifth of a photograph has more pixels than a view needs. Cut from the photograph after it was shrunk to the
size of a view, it has a fifth of the pixels of the view, and is blurred.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl.data.images import decoding
from mmssl.data.images.views import Views
from mmssl.errors import BadInput


class Crops:
    """Cuts an image into what `views` take in its place."""

    def __init__(self, views: Views, processor) -> None:
        """processor: whose filter resizes the crops, and of whose centre crop they are cut. Raises BadInput if a view
        has no size."""
        if any(view.size is None for view in views.views):
            raise BadInput("a view that is cut from stored images needs a size: give each View one")
        self.changes, self.processor = copy.deepcopy(views.changes).cpu(), processor
        self.sizes = [view.shape(0, 0) for view in views.views]
        self.filter = Image.Resampling(processor.resample)

    def __call__(self, image: Image.Image, key: Tensor) -> np.ndarray:
        """(bytes of all views,) uint8: for each view its crop, (3, height, width), resized; where a view is moved, not
        cropped, the whole image. image: RGB. key: () int64, as of `Views`."""
        parts = []
        for size, box in zip(self.sizes, self.boxes(key, image.height, image.width), strict=True):
            part = image.resize(size[::-1], self.filter, box)
            parts.append(np.asarray(part).transpose(2, 0, 1).reshape(-1))
        return np.concatenate(parts)

    def boxes(self, key: Tensor, height: int, width: int) -> list[tuple[float, ...]]:
        """Of each view: left, top, right, bottom, in pixels of an image of (height, width)."""
        high, wide = decoding.kept(self.processor, height, width)
        drawn, is_crop = self.changes(key.view(1), high, wide)[:, 0].double(), self.changes.crops
        middle, reach = drawn[:, [2, 5]], drawn[:, [0, 4]].abs()
        corners = torch.cat([middle - reach, middle + reach], dim=1).clamp(-1, 1)
        corners = torch.where(is_crop, corners, torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.double))
        sides, kept = (torch.tensor(2 * size, dtype=torch.double) for size in ((width, height), (wide, high)))
        return [tuple(box) for box in ((sides + corners * kept) / 2).tolist()]
