"""Views of images on the CPU: one pass over each image, from uint8 to the normalised float32 of its view.

An image is resampled, coloured, blurred and normalised before the next one is read, so that its pixels stay in the
cache, and every inner loop runs over the neighbouring pixels of one colour plane, which LLVM turns into vector
instructions. `kernels.views_torch.tensor_form` is the same mathematics in plain torch, against which this is
tested; `Views` draws the parameters of both.

Threads come from Python and not from numba: numba's own thread pools either abort when a process forks, as data loader
workers do, or cannot be entered from two threads at once.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from mmssl.kernels.views_torch import LUMA

# no value here is ever infinite or NaN: sums and products may be reordered and fused
MATH = {"nnan", "ninf", "nsz", "reassoc", "contract", "arcp"}
PIXELS_PER_THREAD = 16384  # fewer pixels are done before another thread has woken up
F = np.float32  # numba computes in float64 where a constant is a Python float
ZERO, ONE, TWO, FOUR, SIX = F(0), F(1), F(2), F(4), F(6)
RED, GREEN, BLUE = map(F, LUMA)


def _on_disk(function):
    """Compile at the first call, and cache on disk for the next process if possible."""
    try:
        return njit(nogil=True, fastmath=MATH, cache=True)(function)
    except RuntimeError:  # neither __pycache__, NUMBA_CACHE_DIR nor the user's cache directory can be written to
        return njit(nogil=True, fastmath=MATH)(function)


def cpu_pass(
    pixel_values: Tensor,
    parameters: Tensor,
    size: tuple[int, int],
    affine: bool,
    radius: int,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """pixel_values: (batch, 3, height, width) uint8. The other arguments and the result are those of `tensor_form`."""
    pixels, table = pixel_values.contiguous().numpy(), parameters.contiguous().numpy()
    gain = (1 / std).numpy()
    bias = (-mean / std).numpy()
    out = torch.empty(len(pixels), 3, *size)
    views = out.numpy()

    def work(start: int, end: int) -> None:
        _render(pixels[start:end], table[start:end], affine, radius, gain, bias, views[start:end])

    threads = min(torch.get_num_threads(), len(pixels), 1 + len(pixels) * size[0] * size[1] // PIXELS_PER_THREAD)
    if threads <= 1:
        work(0, len(pixels))
    else:
        bounds = [len(pixels) * i // threads for i in range(threads + 1)]
        # list: an error in a thread is raised here
        list(_threads(os.getpid(), threads).map(work, bounds[:-1], bounds[1:]))
    return out


@lru_cache(maxsize=1)
def _threads(process: int, threads: int) -> ThreadPoolExecutor:
    """A pool for each process, because a fork does not copy threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="views")


@_on_disk
def _render(pixels, parameters, affine, radius, gain, bias, views):
    height, width = pixels.shape[2], pixels.shape[3]
    high, wide = views.shape[2], views.shape[3]
    # buffers are allocated once and reused for each image
    top, left = np.zeros(high, np.uint32), np.zeros(wide, np.uint32)
    down, across = np.zeros((_most_taps(height, high), high), F), np.zeros((_most_taps(width, wide), wide), F)
    line = np.zeros((3, max(width, wide) + 2 * radius + 2), F)  # taps of weight zero reach beyond the image
    plane = np.zeros((3 if affine else 1, high, wide) if affine or radius else (1, 1, 1), F)
    blur = np.zeros(radius + 1, F)
    for i in range(len(pixels)):
        p, view = parameters[i], views[i]
        if affine:
            rows = _taps(ONE, ZERO, height, top, down)
            columns = _taps(ONE, ZERO, width, left, across)
            _resample(pixels[i], top, down, rows, left, across, columns, line, F(1 / 255), ZERO, plane)
            total = _turn(plane, p, view)
        else:
            rows = _taps(p[4], p[5], height, top, down)
            columns = _taps(p[0], p[2], width, left, across)
            total = _resample(pixels[i], top, down, rows, left, across, columns, line, p[6] / F(255), p[7], view)
        middle = F(total / (high * wide))
        sigma, fold = p[12], ONE if p[13] > 0 else TWO  # min(x, 2 - x) is x
        if radius > 0 and sigma > 0:
            _colour(view, p[8], middle, p[9], p[10], p[11], TWO, np.ones(3, F), np.zeros(3, F))
            _gaussian(sigma, blur)
            for c in range(3):
                _blur(view[c], blur, line[0], plane[0], fold, gain[c], bias[c])
        else:
            _colour(view, p[8], middle, p[9], p[10], p[11], fold, gain, bias)


@njit(nogil=True)
def _most_taps(source, size):
    return max(2, min(source, math.ceil(2 * max(1.0, 1.001 * source / size))))


@njit(nogil=True)
def _taps(scale, shift, source, first, weights):
    """The triangle filter of each output pixel: weights[k, i] for source pixel first[i] + k. Returns how many k there
    are. The output pixel at u in [-1, 1] samples the source at scale * u + shift; [-1, 1] is the whole source."""
    size = len(first)
    support = max(1.0, abs(scale) * source / size)  # in source pixels
    taps = min(math.ceil(2 * support), source, len(weights))
    narrow = 1 / support
    for i in range(size):
        centre = ((scale * ((2 * i + 1) / size - 1) + shift + 1) * source - 1) / 2
        start = min(max(int(math.floor(centre - support)) + 1, 0), source - taps)
        first[i] = start
        total = ZERO
        for k in range(taps):
            weights[k, i] = max(ZERO, F(1 - abs(start + k - centre) * narrow))
            total += weights[k, i]
        for k in range(taps):
            weights[k, i] /= total
        for k in range(taps, 2):
            weights[k, i] = 0
    return max(taps, 2)


@njit(nogil=True, fastmath=MATH)
def _resample(image, top, down, rows, left, across, columns, line, gain, bias, out):
    """out = clamp(gain * resampled + bias, 0, 1). Returns the sum of its luma."""
    # arrays are indexed and not cut: each view of an array costs numba two atomic counts of its references
    width, high, wide = image.shape[2], out.shape[1], out.shape[2]
    total = ZERO
    for y in range(high):
        first = top[y]
        second = min(first + np.uint32(1), np.uint32(image.shape[1] - 1))
        a, b = down[0, y], down[1, y]
        for c in range(3):
            # rows first: neighbouring pixels are neighbours in memory
            for x in range(width):
                line[c, x] = a * F(image[c, first, x]) + b * F(image[c, second, x])
            for k in range(2, rows):
                row, weight = first + np.uint32(k), down[k, y]
                for x in range(width):
                    line[c, x] += weight * F(image[c, row, x])
            for x in range(wide):
                out[c, y, x] = across[0, x] * line[c, left[x]] + across[1, x] * line[c, left[x] + np.uint32(1)]
            for k in range(2, columns):
                for x in range(wide):
                    out[c, y, x] += across[k, x] * line[c, left[x] + np.uint32(k)]
        for x in range(wide):
            red, green, blue = (
                _clamp(gain * out[0, y, x] + bias),
                _clamp(gain * out[1, y, x] + bias),
                _clamp(gain * out[2, y, x] + bias),
            )
            out[0, y, x], out[1, y, x], out[2, y, x] = red, green, blue
            total += RED * red + GREEN * green + BLUE * blue
    return total


@njit(nogil=True, fastmath=MATH)
def _turn(source, p, out):
    """Sample each pixel at the position given by the matrix p[:6], bilinearly; outside, the border repeats."""
    high, wide = source.shape[1], source.shape[2]
    total = ZERO
    for y in range(high):
        v = F((2 * y + 1) / high - 1)
        for x in range(wide):
            u = F((2 * x + 1) / wide - 1)
            across = ((p[0] * u + p[1] * v + p[2] + ONE) * F(wide) - ONE) / TWO
            down = ((p[3] * u + p[4] * v + p[5] + ONE) * F(high) - ONE) / TWO
            across, down = min(max(across, ZERO), F(wide - 1)), min(max(down, ZERO), F(high - 1))
            left, top = np.uint32(across), np.uint32(down)
            right, bottom = min(left + 1, wide - 1), min(top + 1, high - 1)
            a, d = across - F(left), down - F(top)
            for c in range(3):
                upper = source[c, top, left] + a * (source[c, top, right] - source[c, top, left])
                lower = source[c, bottom, left] + a * (source[c, bottom, right] - source[c, bottom, left])
                value = (upper + d * (lower - upper)) * p[6] + p[7]
                out[c, y, x] = min(max(value, ZERO), ONE)
            total += RED * out[0, y, x] + GREEN * out[1, y, x] + BLUE * out[2, y, x]
    return total


@njit(nogil=True, fastmath=MATH)
def _colour(view, contrast, middle, saturation, turn, grey, fold, gain, bias):
    """Contrast, saturation, hue, grey, solarise and normalise, in place."""
    shift0, shift1, shift2 = (F(5) + SIX * turn) % SIX, (F(3) + SIX * turn) % SIX, (ONE + SIX * turn) % SIX
    base = middle - middle * contrast
    high, wide = view.shape[1], view.shape[2]
    for y in range(high):
        if contrast != ONE or saturation != ONE:
            for x in range(wide):
                r, g, b = (
                    _clamp(contrast * view[0, y, x] + base),
                    _clamp(contrast * view[1, y, x] + base),
                    _clamp(contrast * view[2, y, x] + base),
                )
                luma = RED * r + GREEN * g + BLUE * b
                view[0, y, x] = _clamp(luma + saturation * (r - luma))
                view[1, y, x] = _clamp(luma + saturation * (g - luma))
                view[2, y, x] = _clamp(luma + saturation * (b - luma))
        if turn != ZERO:
            for x in range(wide):
                r, g, b = view[0, y, x], view[1, y, x], view[2, y, x]
                most = r if r > g else g
                most = most if most > b else b
                least = r if r < g else g
                least = least if least < b else b
                chroma = most - least
                # six times the hue, times the chroma: so nothing is divided
                hue = g - b if most == r else (TWO * chroma + b - r if most == g else FOUR * chroma + r - g)
                view[0, y, x] = most - _below(hue + shift0 * chroma, chroma)
                view[1, y, x] = most - _below(hue + shift1 * chroma, chroma)
                view[2, y, x] = most - _below(hue + shift2 * chroma, chroma)
        if grey > ZERO:
            for x in range(wide):
                luma = RED * view[0, y, x] + GREEN * view[1, y, x] + BLUE * view[2, y, x]
                view[0, y, x], view[1, y, x], view[2, y, x] = luma, luma, luma
        for c in range(3):
            for x in range(wide):
                value = view[c, y, x]
                value = value if value < fold - value else fold - value
                view[c, y, x] = gain[c] * value + bias[c]


@njit(nogil=True, fastmath=MATH, inline="always")
def _clamp(value):
    value = value if value > ZERO else ZERO
    return value if value < ONE else ONE


@njit(nogil=True, fastmath=MATH, inline="always")
def _below(k, chroma):
    """How far a channel is below the maximum of the three, by its position on the colour wheel (6 chroma around)."""
    k = k - SIX * chroma if k >= SIX * chroma else k
    far = FOUR * chroma - k
    k = k if k < far else far
    k = k if k < chroma else chroma
    return k if k > ZERO else ZERO


@njit(nogil=True)
def _gaussian(sigma, taps):
    """taps[k]: the weight at a distance of k pixels either way."""
    total = 0.0
    for k in range(len(taps)):
        total += (2 if k else 1) * math.exp(-0.5 * (k / sigma) ** 2)
    for k in range(len(taps)):
        taps[k] = math.exp(-0.5 * (k / sigma) ** 2) / total


@njit(nogil=True, fastmath=MATH)
def _blur(view, taps, line, across, fold, gain, bias):
    """Blur one colour plane; then solarise and normalise. The border repeats."""
    high, wide = view.shape
    radius = len(taps) - 1
    for y in range(high):
        source, out = view[y], across[y]
        for k in range(radius):
            line[k], line[radius + wide + k] = source[0], source[wide - 1]
        for x in range(wide):
            line[radius + x] = source[x]
        middle = line[radius : radius + wide]
        for x in range(wide):
            out[x] = taps[0] * middle[x]
        for k in range(1, radius + 1):
            before, after, weight = line[radius - k : radius - k + wide], line[radius + k : radius + k + wide], taps[k]
            for x in range(wide):
                out[x] += weight * (before[x] + after[x])
    for y in range(high):
        out, middle = view[y], across[y]
        for x in range(wide):
            out[x] = taps[0] * middle[x]
        for k in range(1, radius + 1):
            before, after, weight = across[max(y - k, 0)], across[min(y + k, high - 1)], taps[k]
            for x in range(wide):
                out[x] += weight * (before[x] + after[x])
        for x in range(wide):
            value = out[x]
            value = value if value < fold - value else fold - value
            out[x] = gain * value + bias
