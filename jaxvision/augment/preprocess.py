"""The evaluation transform of a model: resize, crop and normalize."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxvision.errors import UserError, unknown_name_error

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The evaluation transform of a model: resize, crop and normalize. Each weight tag has its own.

    Args:
      image_size: side of the square image that the model takes, in pixels.
      crop_pct: share of the resized image's side that the crop keeps, in (0, 2]. The image is resized to
        ``floor(image_size / crop_pct)``. Above 1 the image is padded.
      crop_mode: ``"center"`` resizes the shorter side and crops; ``"squash"`` resizes both sides to the same length
        and crops; ``"border"`` resizes the longer side and pads with the mean color.
      interpolation: a filter of Pillow: ``"bicubic"``, ``"bilinear"``, ``"nearest"``, ``"box"``, ``"hamming"`` or
        ``"lanczos"``.
      mean: mean of each channel of the training images in [0, 1]; subtracted.
      std: standard deviation of each channel of the training images in [0, 1]; the difference is divided by it.

    Raises:
      UserError: a value is out of range.

    Example:
      >>> from dataclasses import replace
      >>> preprocess = Preprocess(image_size=224, crop_pct=0.9)
      >>> preprocess.resize_to
      248
      >>> replace(preprocess, image_size=384, crop_pct=1.0).resize_to
      384
    """

    image_size: int = 224
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        size = self.image_size
        is_number = isinstance(size, numbers.Real) and not isinstance(size, bool)
        if not is_number or not 1 <= size < math.inf or size != int(size):
            raise UserError(f"image_size: got {size!r}, expected a whole number of pixels, the side of a square.")
        if not 0 < self.crop_pct <= 2:
            raise UserError(f"crop_pct: got {self.crop_pct!r}, expected a share of the side, above 0 and at most 2.")
        if self.crop_mode not in CROP_MODES:
            raise unknown_name_error("crop_mode", self.crop_mode, CROP_MODES)
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name_error("interpolation", self.interpolation, INTERPOLATIONS)
        check_mean_std(self.mean, self.std)
        # Lists (from JSON or a config) become tuples, so that equal settings compare and hash alike.
        object.__setattr__(self, "image_size", int(self.image_size))
        object.__setattr__(self, "mean", tuple(float(x) for x in self.mean))
        object.__setattr__(self, "std", tuple(float(x) for x in self.std))

    @property
    def resize_to(self) -> int:
        """Side before the crop, in pixels."""
        return math.floor(self.image_size / self.crop_pct)

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width of an image after the resize and before the crop, in pixels.

        >>> Preprocess(image_size=224, crop_pct=0.875).resized_shape(300, 400)
        (256, 341)
        """
        to = self.resize_to
        if self.crop_mode == "squash":
            return to, to
        if self.crop_mode == "border":
            ratio = max(height, width) / to
            return max(round(height / ratio), 1), max(round(width / ratio), 1)
        if width <= height:
            return int(to * height / width), to
        return to, int(to * width / height)

    def for_channels(self, channels: int) -> Preprocess:
        """Returns the transform for images with this number of channels.

        One gray channel has the mean of the colors' statistics, and several channels share those of a single one. For
        other numbers there is nothing to derive them from: each channel has a mean of 0.5 and a deviation of 0.25.

        >>> preprocess = Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
        >>> preprocess.for_channels(1).mean, preprocess.for_channels(4).std
        ((0.5,), (0.25, 0.25, 0.25, 0.25))
        """
        known = len(self.mean)
        if channels == known:
            return self
        if channels == 1:
            return replace(self, mean=(float(np.mean(self.mean)),), std=(float(np.mean(self.std)),))
        if known == 1:
            return replace(self, mean=self.mean * channels, std=self.std * channels)
        return replace(self, mean=(0.5,) * channels, std=(0.25,) * channels)

    def fill(self, channels: int) -> tuple[int, ...]:
        """Returns the color that pads an image smaller than the crop, one number in 0 to 255 for each channel.

        >>> Preprocess(crop_mode="border", mean=(0.5, 0.5, 0.5)).fill(3)
        (128, 128, 128)
        """
        if self.crop_mode != "border":
            return (0,) * channels
        mean = self.mean if len(self.mean) == channels else self.mean[:1] * channels
        return tuple(round(255 * m) for m in mean)


def crop_offset(length: int, size: int) -> int:
    """Returns the offset of a centered crop of `size`, rounded half to even as in torchvision.

    >>> crop_offset(341, 224), crop_offset(257, 256), crop_offset(259, 256)
    (58, 0, 2)
    """
    return round((length - size) / 2)


def check_mean_std(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises `UserError` unless `mean` and `std` have equal lengths and are possible for channels in [0, 1]."""
    if len(mean) != len(std) or not len(mean):
        raise UserError(f"mean and std: got {len(mean)} and {len(std)} numbers, expected one of each per channel.")
    scale = "because images are scaled to 0 to 1. Divide values for a scale of 0 to 255 by 255"
    if not all(0 <= x <= 1 for x in mean):  # so that NaN is refused as well
        raise UserError(f"mean: got {tuple(mean)}, expected numbers from 0 to 1, {scale}.")
    if not all(0 < x <= 1 for x in std):
        raise UserError(f"std: got {tuple(std)}, expected numbers above 0 and at most 1, {scale}.")
