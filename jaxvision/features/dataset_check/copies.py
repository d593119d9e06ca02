"""Copies of images: identical files, and files that show the same photograph.

Features find the candidates, and pixels decide: different photographs of one class have similar features, and
landscapes have similar pixels, but only copies have both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from jaxvision.data.reading import to_pixels

#: Cosine similarity of features, after their mean is subtracted, and correlation of pixels that copies reach.
SIMILARITY, CORRELATION = 0.6, 0.85
#: The same for crops. The best of many positions correlates by chance, and the search takes milliseconds.
CROP_SIMILARITY, CROP_CORRELATION = 0.7, 0.9

_SIDE = 32  # pixels of a thumbnail
_CROPS = range(24, 33)  # sides of the other image's thumbnail in that of a crop: 75 % to 100 %
_LEAST_CONTRAST = 2.0  # standard deviation of gray levels, of 255, below which an image is blank


class View(NamedTuple):
    """The parts of an image that are compared.

    Attributes:
      digest: of its bytes.
      pixels: height times width.
      gray: float32 [32, 32].
    """

    digest: bytes
    pixels: int
    gray: np.ndarray


class Copy(NamedTuple):
    """Two images that show the same.

    Attributes:
      first, second: their rows, in ascending order.
      correlation: of their pixels; 1 if the files are identical.
      how: how they differ, in words.
    """

    first: int
    second: int
    correlation: float
    how: str


def view_of(image: bytes | np.ndarray) -> View:
    """Returns what is compared of an image, which is the bytes of a file or pixels uint8 [h, w, channels]."""
    pixels = to_pixels(image)
    h, w, _ = pixels.shape
    gray = pixels[..., :3].mean(axis=-1, dtype=np.float32)
    raw = image if isinstance(image, bytes) else repr(pixels.shape).encode() + pixels.tobytes()
    gray = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return View(hashlib.blake2b(raw, digest_size=16).digest(), h * w, gray)


def compare(a: View, b: View, *, crops: bool = True) -> tuple[float, str]:
    """Returns the correlation of the pixels of two images, and how they differ; ``(0.0, "")`` if they are not copies.

    Args:
      a, b: the images. Each may be mirrored.
      crops: whether one may also be a part of the other, at least three quarters of its width and height.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> image = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (60, 60))
      >>> compare(view_of(image), view_of(image[:, ::-1]))[1]
      'mirrored'
    """
    if a.digest == b.digest:
        return 1.0, "identical files"
    if min(a.gray.std(), b.gray.std()) < _LEAST_CONTRAST:
        return (1.0, "both blank") if np.abs(a.gray - b.gray).max() < 2 * _LEAST_CONTRAST else (0.0, "")
    mirrored = np.ascontiguousarray(b.gray[:, ::-1])
    whole = max((_correlation(a.gray, b.gray), "resized or recompressed"), (_correlation(a.gray, mirrored), "mirrored"))
    if whole[0] >= CORRELATION or not crops:
        return whole if whole[0] >= CORRELATION else (0.0, "")
    part = max(
        (max(_crop(a.gray, b.gray), _crop(b.gray, a.gray)), "cropped"),
        (max(_crop(a.gray, mirrored), _crop(mirrored, a.gray)), "mirrored and cropped"),
    )
    return part if part[0] >= CROP_CORRELATION else (0.0, "")


def _correlation(image: np.ndarray, part: np.ndarray) -> float:
    """Returns the highest correlation of a part with the image, over all positions."""
    return min(float(cv2.matchTemplate(image, part, cv2.TM_CCOEFF_NORMED).max()), 1.0)


def _crop(whole: np.ndarray, part: np.ndarray) -> float:
    """Returns the correlation if `part` is a crop of `whole`."""

    def at(h: int, w: int) -> float:
        return _correlation(whole, cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA))

    best, side = max((at(side, side), side) for side in _CROPS)
    if best < CROP_CORRELATION - 0.15:
        return best
    near = [other for other in _CROPS if abs(other - side) <= 1]  # a crop may also change the aspect ratio
    return max(best, *(at(h, w) for h in near for w in near if h != w))


def find_copies(similarity: np.ndarray, neighbor: np.ndarray, view: Callable[[int], View]) -> list[Copy]:
    """Returns the pairs of copies, in the order of their rows.

    Args:
      similarity: float [n, k], cosine similarities of the features to those of the nearest neighbors.
      neighbor: int [n, k], the rows of these neighbors.
      view: row -> `view_of` its image; called for candidates only.
    """
    row, column = np.nonzero(similarity >= SIMILARITY)
    other = neighbor[row, column]
    pairs = {
        (min(a, b), max(a, b)): value
        for a, b, value in zip(row.tolist(), other.tolist(), similarity[row, column].tolist(), strict=True)
    }
    copies = []
    for (first, second), value in sorted(pairs.items()):
        correlation, how = compare(view(first), view(second), crops=value >= CROP_SIMILARITY)
        if correlation > 0:
            copies.append(Copy(first, second, correlation, how))
    return copies
