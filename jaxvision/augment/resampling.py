"""Pillow's resize along one axis as a matrix: for the device, and for images too narrow to be resized whole."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import PIL

from jaxvision.augment.preprocess import crop_offset

_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])

#: Reach of each filter in source pixels, when it does not shrink.
_SUPPORT = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def axis_weights(size: int, new_size: int, interpolation: str, *, first: int, count: int) -> tuple[int, np.ndarray]:
    """Returns the weights with which Pillow's resize sums source pixels along one axis.

    Computes new pixels `first` to ``first + count - 1`` only, and the weights only of the source pixels that they need.

    Args:
      size: number of source pixels.
      new_size: number of pixels of the whole resized axis.
      interpolation: a filter of `Preprocess`.
      first: the first new pixel.
      count: number of new pixels.

    Returns:
      (start, weights): ``weights[i, j]`` is the weight of source pixel ``start + j`` in new pixel ``first + i``, int32
      [count, n], in units of 2**-22.

    >>> axis_weights(4, 2, "box", first=1, count=1)
    (2, array([[2097152, 2097152]], dtype=int32))
    """
    zoom = size / new_size
    stretch = max(zoom, 1.0)  # shrinking widens the filter, so that every pixel contributes
    middles = [(i + 0.5) * zoom for i in range(first, first + count)]
    if interpolation == "nearest":  # adds up the positions, and with them the rounding errors
        positions = itertools.accumulate(itertools.repeat(zoom), initial=zoom * 0.5)
        spans = [(int(x), int(x) + 1) for x in itertools.islice(positions, first, first + count)]
    else:
        reach = _SUPPORT[interpolation] * stretch
        spans = [(max(int(m - reach + 0.5), 0), min(int(m + reach + 0.5), size)) for m in middles]
    start = spans[0][0]
    weights = np.zeros((count, spans[-1][1] - start), np.int32)
    for row, middle, (low, high) in zip(weights, middles, spans, strict=True):
        w = _filter((np.arange(low, high) - middle + 0.5) * (1 / stretch), interpolation)
        w = w / w.sum() * 2**22
        row[low - start : high - start] = np.trunc(w + np.copysign(0.5, w))
    return start, weights


def _filter(x: np.ndarray, interpolation: str) -> np.ndarray:
    """Returns the weight of pixels at the distances `x` from the middle of a new pixel, as in Pillow's Resample.c."""
    if interpolation == "nearest":
        return np.ones_like(x)
    if interpolation == "box":
        return ((x > -0.5) & (x <= 0.5)).astype(float)
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1 - x, 0)
    if interpolation == "hamming":
        return np.where(x < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)
    if interpolation == "lanczos":
        return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)
    # Keys' cubic convolution with a = -1/2
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


class Pass(NamedTuple):
    """One of the two steps of a resize: along one axis.

    Attributes:
      axis: 0 for the height, 1 for the width.
      start: the first source pixel that is needed.
      stop: one past the last.
      weights: int32 [new pixels, stop - start], see `axis_weights`; None if the axis keeps its length.
    """

    axis: int
    start: int
    stop: int
    weights: np.ndarray | None


def crop_passes(shape: tuple[int, int], resized: tuple[int, int], size: int, interpolation: str) -> list[Pass]:
    """Returns the passes that resize an image as Pillow does and keep at most `size` pixels in the middle of each axis.

    Nothing is computed that the crop does not keep: an image of 1 x 4000 pixels is 256 x 1,024,000 before its crop.

    Args:
      shape: height and width of the image.
      resized: height and width of the whole image after the resize.
      size: side of the crop.
      interpolation: a filter of `Preprocess`.

    Returns:
      The two passes, in Pillow's order. Pillow rounds to whole numbers after each.
    """
    passes = []
    for axis, (old, new) in enumerate(zip(shape, resized, strict=True)):
        count = min(new, size)
        first = crop_offset(new, count)
        if old == new:
            passes.append(Pass(axis, first, first + count, None))
        else:
            start, weights = axis_weights(old, new, interpolation, first=first, count=count)
            passes.append(Pass(axis, start, start + weights.shape[1], weights))
    return passes if _is_height_first(shape, resized) else passes[::-1]


def _is_height_first(shape: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Returns whether the installed Pillow resizes the height before the width."""
    (height, width), (new_height, new_width) = shape, resized
    if _PILLOW >= (13, 0):
        return height - new_height > max(2 * (width - new_width), 0)
    return _PILLOW >= (12, 2) and height > 100 * width and new_height < height


def resize_and_crop(pixels: np.ndarray, resized: tuple[int, int], size: int, interpolation: str) -> np.ndarray:
    """Returns an image resized as Pillow does, of which only the middle is computed.

    Args:
      pixels: uint8 [h, w, c].
      resized: height and width of the whole image after the resize.
      size: number of pixels to keep in the middle of each axis; a shorter axis is kept whole.
      interpolation: a filter of `Preprocess`.
    """
    passes = crop_passes((pixels.shape[0], pixels.shape[1]), resized, size, interpolation)
    for axis, start, stop, _ in passes:
        pixels = pixels.take(range(start, stop), axis)
    for axis, _, _, weights in passes:
        if weights is not None:
            # The sums are whole numbers below 2**53, so float64 is exact, and faster than integers.
            sums = np.tensordot(weights.astype(float), pixels.astype(float), (1, axis))
            pixels = np.moveaxis(((sums + 2**21) // 2**22).clip(0, 255).astype(np.uint8), 0, axis)
    return pixels
