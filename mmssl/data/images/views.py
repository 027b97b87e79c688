"""Augmented views of images: random crops, moves and colours, drawn for each image and normalised, a batch at a time.

The augmentation of SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A) and its successors. Differs from
torchvision's transforms: every draw is a function of the image's key, so that a view does not depend on the batch,
process or thread that makes it, and is the same after a resume; crops are not rounded to whole pixels; the colours
change in a fixed order. On a CPU a compiled kernel does the work (`mmssl.kernels.views`), elsewhere tensor operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from mmssl.arguments import Flags, flag
from mmssl.data import draws
from mmssl.data.images import decoding
from mmssl.errors import BadInput
from mmssl.kernels.views_torch import tensor_form

# What is drawn for a view. A draw's stream is its index here: append only, or old runs no longer repeat.
AMOUNTS = ("area", "ratio", "x", "y", "angle", "zoom", "shift_x", "shift_y", "brightness", "lightness", "contrast",
           "saturation", "hue", "sigma")  # fmt: skip
EVENTS = ("flip", "jitter", "grey", "blur", "solarise")
STREAMS_PER_VIEW = 64  # room for more draws


@dataclass(frozen=True)
class View:
    """The random changes of one view: crop or move, flip, colours, grey, blur, solarise.

    size: (height, width) in pixels; one number for a square; None: as large as the image.

    A random resized crop (Szegedy et al. 2014, arXiv:1409.4842, section 6), unless scale is None:
    scale: (smallest, largest) fraction of the area that the crop keeps. ratio: (smallest, largest) width / height.

    Or a move of the whole image; pixels from outside repeat the border:
    rotation: largest angle in degrees, either way. zoom: (smallest, largest) visible part, as a fraction of the side.
    translation: largest shift, either way, as a fraction of the side.

    flip: probability of a horizontal flip.
    jitter: probability that the colours change, each by its own draw and in this order. Brightness multiplies by
            1 +- `brightness` and adds +- `lightness`; contrast scales the distance from the image's mean grey by
            1 +- `contrast`; saturation scales the distance from the pixel's grey by 1 +- `saturation`; `hue` turns the
            colour wheel by up to this fraction of a circle, either way (at most 0.5).
    grey: probability that the view is grey.
    blur: probability of a Gaussian blur with `sigma` (smallest, largest) pixels; its kernel spans 10 % of the side.
    solarise: probability that values above one half are inverted.

    Raises BadInput if a value is out of range.
    """

    size: int | tuple[int, int] | None = None
    scale: tuple[float, float] | None = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    translation: float = 0.0
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    lightness: float = 0.0
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        for name in EVENTS:
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} {getattr(self, name)}: a probability lies between 0 and 1")
        for name in ("rotation", "translation", "brightness", "lightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} {getattr(self, name)}: the strength of a change cannot be negative")
        for name in ("scale", "ratio", "zoom", "sigma"):
            low, high = getattr(self, name) or (1.0, 1.0)
            if not 0 < low <= high:
                raise BadInput(f"{name} {getattr(self, name)}: give (smallest, largest), both above 0")
        if self.scale is not None and self.scale[1] > 1:
            raise BadInput(f"scale {self.scale}: a crop keeps at most the whole image, 1.0")
        if not 0 <= self.hue <= 0.5:
            raise BadInput(f"hue {self.hue}: a turn of the colour wheel lies between 0 and 0.5, half a circle")
        if self.scale is not None and self.moves:
            raise BadInput("a view is either cropped or moved: with rotation, zoom or translation give scale=None")
        if self.size is not None and min(self.shape(1, 1)) < 1:
            raise BadInput(f"size {self.size}: a view has at least 1 pixel")

    @property
    def moves(self) -> bool:
        return self.rotation > 0 or self.translation > 0 or self.zoom != (1.0, 1.0)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the view of an image of (height, width)."""
        if self.size is None:
            return height, width
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    def ranges(self) -> list[tuple[float, float]]:
        """(smallest, largest) value of each of AMOUNTS, in their order."""
        area, ratio = self.scale or (1.0, 1.0), self.ratio if self.scale else (1.0, 1.0)

        def around(strength: float, middle: float) -> tuple[float, float]:
            return max(0.0, middle - strength) if middle else -strength, middle + strength

        return [
            area,
            (math.log(ratio[0]), math.log(ratio[1])),
            (-1.0, 1.0),
            (-1.0, 1.0),
            around(math.radians(self.rotation), 0.0),
            (math.log(self.zoom[0]), math.log(self.zoom[1])),
            around(2 * self.translation, 0.0),  # a shift of 2 is one whole side
            around(2 * self.translation, 0.0),
            around(self.brightness, 1.0),
            around(self.lightness, 0.0),
            around(self.contrast, 1.0),
            around(self.saturation, 1.0),
            around(self.hue, 0.0),
            self.sigma,
        ]


WHOLE = View(scale=None, flip=0.0, jitter=0.0, grey=0.0)
FLIP = View(scale=None, jitter=0.0, grey=0.0)
CROP = View(flip=0.0, jitter=0.0, grey=0.0)  # for images that a flip changes into others: digits, letters
CROP_FLIP = View(jitter=0.0, grey=0.0)  # MAE, arXiv:2111.06377, appendix A.1
SIMCLR = View()  # for 32 to 64 px: arXiv:2002.05709, appendix B.9, colour strength 0.5, no blur
PHOTO = View(scale=(0.5, 1.0), jitter=0.0, grey=0.0)  # captioned photos: a crop must keep what the caption names
# drawings: moved but never flipped (an arrow to the left is not one to the right)
EMOJI = View(
    scale=None, rotation=15.0, zoom=(0.8, 1.25), translation=0.1, flip=0.0, jitter=1.0, brightness=0.2, lightness=0.2,
    contrast=0.0, saturation=0.4, hue=0.0, grey=0.0,
)  # fmt: skip
BLUR_FROM = 96  # px; in smaller images a blur removes the object along with the detail


def whole(flip: float) -> View:
    """The whole image, flipped with this probability."""
    return replace(WHOLE, flip=flip)


def simclr(size: int, scale: tuple[float, float] = (0.2, 1.0)) -> View:
    """SimCLR's view at `size` px, with blur if the image is large enough (arXiv:2002.05709, appendix A)."""
    return View(size=size, scale=scale, blur=0.5 if size >= BLUR_FROM else 0.0)


def byol(size: int, scale: tuple[float, float] = (0.2, 1.0)) -> tuple[View, View]:
    """BYOL's two views: one is always blurred, the other rarely blurred and sometimes solarised (arXiv:2006.07733,
    table 6)."""
    blurs = (1.0, 0.1) if size >= BLUR_FROM else (0.0, 0.0)
    first = View(size=size, scale=scale, saturation=0.2, blur=blurs[0])
    return first, replace(first, blur=blurs[1], solarise=0.2)


def sized(view: View, processor) -> View:
    """The view at the output size of `processor`."""
    return replace(view, size=decoding.shape(processor))


def made_for(processor, views: Sequence[View]) -> Views:
    """The views in the size, and with the mean and deviation, of images that `processor` leaves."""
    return Views([sized(view, processor) for view in views], *decoding.normalisation(processor))


def multi_crop(
    large: Sequence[View], small_size: int, small_views: int, boundary: float = 0.4, smallest: float = 0.05
) -> tuple[View, ...]:
    """The large views, which keep at least `boundary` of the area, then small ones, which keep `smallest` to `boundary`
    of it (SwAV, arXiv:2006.09882, section 3.2; the fractions are those of DINO, arXiv:2104.14294, appendix)."""
    large = tuple(replace(view, scale=(boundary, 1.0)) for view in large)
    if not small_views:
        return large
    blur = 0.5 if small_size >= BLUR_FROM else 0.0
    small = replace(large[0], size=small_size, scale=(smallest, boundary), blur=blur, solarise=0.0)
    return large + (small,) * small_views


@dataclass
class MultiCropArgs(Flags):
    """Flags of recipes that make two large views of an image and several small ones. The defaults are for images of 32
    pixels, whose small views would be 16 pixels wide."""

    small_views: int = flag(0, "views of a small part of the image, at half its side", at_least=0, at_most=64)
    boundary: float = flag(0.2, "smallest area of the large views, largest of the small ones", above=0, at_most=1)
    smallest_crop: float = flag(0.1, "smallest fraction of an image's area in a small view", above=0, at_most=1)


def multi_crop_from_args(args: MultiCropArgs, processor, patch_size: int | None = None) -> Views:
    """Two large views (BYOL's) in the size that `processor` leaves, and small ones of half its side, rounded down to
    whole patches of a ViT."""
    if args.small_views and args.smallest_crop > args.boundary:
        raise BadInput(f"--smallest_crop {args.smallest_crop} is more than --boundary {args.boundary}; lower it")
    side, patch = min(decoding.shape(processor)), patch_size or 1
    large = [sized(view, processor) for view in byol(side)]
    small = max(patch, side // 2 // patch * patch)
    crops = multi_crop(large, small, args.small_views, args.boundary, args.smallest_crop)
    return Views(crops, *decoding.normalisation(processor))


class Changes(nn.Module):
    """What is drawn for several views of each image."""

    def __init__(self, views: Sequence[View]) -> None:
        super().__init__()
        ranges = torch.tensor([view.ranges() for view in views])
        chances = torch.tensor([[float(getattr(view, name)) for name in EVENTS] for view in views])
        constants = {
            "low": ranges[:, None, :, 0],  # (views, 1, amounts)
            "span": ranges[:, None, :, 1] - ranges[:, None, :, 0],
            "chances": chances[:, None],
            "crops": torch.tensor([[view.scale is not None] for view in views]),
            "streams": torch.arange(len(views))[:, None, None] * STREAMS_PER_VIEW
            + torch.arange(len(AMOUNTS) + len(EVENTS)),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, key: Tensor, height: int, width: int, cropped: bool = False) -> Tensor:
        """(views, batch, 14) float32: the changes of each view of each image of (height, width).

        0-5    the pixel at (x, y) of the view samples the image at (p0 x + p1 y + p2, p3 x + p4 y + p5), both in
               [-1, 1]
        6-10   brightness, lightness, contrast, saturation, hue, as in View; 1, 0, 1, 1, 0 change nothing
        11-13  grey: 1 or 0. sigma of the blur in pixels, 0 for none. solarise: 1 or 0

        key: (batch,) int64. cropped: the image is the crop already, only to be flipped.
        """
        drawn = draws.uniform(key[:, None], self.streams)
        amounts = (self.low + self.span * drawn[..., : len(AMOUNTS)]).unbind(2)
        area, ratio, x, y, angle, zoom, shift_x, shift_y, *colours, sigma = amounts
        happens = drawn[..., len(AMOUNTS) :] < self.chances
        flip, jitter, grey, blur, solarise = happens.unbind(2)
        ratio, zoom = ratio.exp() * torch.where(self.crops, height / width, 1.0), zoom.exp()
        # width and height of the crop, as fractions of the image's
        wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        if cropped:
            wide, high = torch.ones_like(wide), torch.ones_like(high)  # a view that is moved always shows the whole
        mirror = 1 - 2 * flip.float()
        cosine, sine = angle.cos() * zoom, angle.sin() * zoom
        neutral = (1.0, 0.0, 1.0, 1.0, 0.0)
        return torch.stack(
            [
                wide * cosine * mirror,
                -wide * sine,
                x * (1 - wide) + shift_x,  # any position that keeps the crop inside the image
                high * sine * mirror,
                high * cosine,
                y * (1 - high) + shift_y,
                *(torch.where(jitter, colour, nothing) for colour, nothing in zip(colours, neutral, strict=True)),
                grey.float(),
                sigma * blur,
                solarise.float(),
            ],
            dim=2,
        )


class Views(nn.Module):
    """Several views of each image of a batch, normalised by `mean` and `std` (one value per channel, for pixels in
    [0, 1]). Raises BadInput if `views` is empty."""

    def __init__(self, views: Sequence[View], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not views:
            raise BadInput("Views() got an empty list of views; give at least one")
        self.views = tuple(views)
        self.on_cpu = torch.compiler.disable(_on_cpu)  # torch.compile must not trace into numba
        self.changes = Changes(self.views)
        for name, value in {"mean": mean, "std": std}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, key: Tensor) -> list[Tensor]:
        """For each view, (batch, 3, height, width) float32.

        pixel_values: (batch, 3, height, width) uint8, or what `crops.Crops` has cut from the stored images, (batch,
        bytes of all views) uint8. key: (batch,) int64, a number per image that changes with seed, epoch and row.
        """
        if pixel_values.dim() == 2:
            images, parameters = self._cut(pixel_values), self.changes(key, 1, 1, cropped=True)
        else:
            images = [pixel_values] * len(self.views)
            parameters = self.changes(key, *pixel_values.shape[2:])
        return [self._render(*given) for given in zip(images, self.views, parameters, strict=True)]

    @torch.no_grad()
    def whole(self, pixel_values: Tensor) -> Tensor:
        """(batch, 3, height, width) float32: the whole images without random changes, normalised and resized to the
        first view's size. pixel_values: (batch, 3, height, width) uint8."""
        parameters = torch.tensor([1.0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0], device=pixel_values.device)
        return self._render(
            pixel_values, replace(WHOLE, size=self.views[0].size), parameters.repeat(len(pixel_values), 1)
        )

    def to_unit_range(self, pixels: Tensor) -> Tensor:
        """(..., 3, height, width) float32: undo the normalisation, giving values in [0, 1] for figures."""
        return (pixels * self.std.view(3, 1, 1) + self.mean.view(3, 1, 1)).clamp(0, 1)

    def normalised(self, images: Tensor) -> Tensor:
        """(..., 3, height, width) in [0, 1], normalised like a view."""
        return (images - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)

    def parameters_of(self, key: Tensor, height: int, width: int) -> Tensor:
        """(views, batch, 14) float32: what is drawn for each view of each image of (height, width), see `Changes`."""
        return self.changes(key, height, width)

    def _cut(self, rows: Tensor) -> list[Tensor]:
        """The crops that data workers have cut for each view, of rows that hold them one after the other: (batch, 3,
        height, width) uint8 each."""
        shapes = [(3, *view.shape(0, 0)) for view in self.views]
        parts = rows.split([math.prod(shape) for shape in shapes], dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _render(self, pixel_values: Tensor, view: View, parameters: Tensor) -> Tensor:
        if pixel_values.dtype != torch.uint8 or pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            raise BadInput(
                f"views are made of (batch, 3, height, width) uint8, not {tuple(pixel_values.shape)} "
                f"{str(pixel_values.dtype).removeprefix('torch.')}; see decoding.decode"
            )
        size = view.shape(*pixel_values.shape[2:])
        radius = min(size) // 20 if view.blur > 0 else 0  # the kernel's 2 r + 1 pixels are 10 % of the side
        form = self.on_cpu if pixel_values.device.type == "cpu" else tensor_form
        return form(pixel_values, parameters, size, view.moves, radius, self.mean, self.std)


def _on_cpu(*arguments) -> Tensor:
    return _cpu_pass()(*arguments)


@cache
def _cpu_pass():
    try:
        from mmssl.kernels.views import cpu_pass  # here: it loads numba
    except Exception:  # numba does not support this Python, or LLVM this processor
        return tensor_form
    return cpu_pass
