"""How a picture becomes the array that a model was trained to see."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

from jaxvision.errors import UserError, unknown_name_error

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The evaluation transform of a model: resize, crop, normalize. A weight tag brings its own.

    Args:
      image_size: side of the square that the model sees, in pixels.
      crop_pct: the share of the resized picture's side that the crop keeps, in (0, 1] as a rule: the picture is
        resized to ``floor(image_size / crop_pct)``. Above 1 the crop is padded.
      crop_mode: ``"center"`` resizes the shorter side and crops; ``"squash"`` resizes both sides to the same length,
        whatever the shape, and crops; ``"border"`` resizes the longer side and fills the rest with the mean color.
      interpolation: Pillow's filter: ``"bicubic"``, ``"bilinear"``, ``"nearest"``, ``"box"``, ``"hamming"`` or
        ``"lanczos"``.
      mean: of the training pictures, subtracted, one number for each channel in units of [0, 1].
      std: what the difference is divided by, likewise.

    Raises:
      UserError: a value outside what is said above.

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
        if not isinstance(size, numbers.Real) or isinstance(size, bool) or size != int(size) or size < 1:
            raise UserError(f"image_size is a number of pixels, the side of a square, but is {size!r}")
        if not 0 < self.crop_pct <= 2:
            raise UserError(f"crop_pct is a share of the side, above 0 and at most 2, but is {self.crop_pct!r}")
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
        """The side to resize to before the crop, in pixels."""
        return math.floor(self.image_size / self.crop_pct)

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of a picture after the resize and before the crop.

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

    def fill(self, channels: int) -> tuple[int, ...]:
        """Returns what pads a picture that is smaller than the crop, for each channel, in 0 to 255.

        >>> Preprocess(crop_mode="border", mean=(0.5, 0.5, 0.5)).fill(3)
        (128, 128, 128)
        """
        if self.crop_mode != "border":
            return (0,) * channels
        mean = self.mean if len(self.mean) == channels else self.mean[:1] * channels
        return tuple(round(255 * m) for m in mean)


def crop_offset(length: int, size: int) -> int:
    """Returns where a centered crop of `size` begins; halves are rounded to even, as PyTorch's transforms do.

    >>> crop_offset(341, 224), crop_offset(257, 256), crop_offset(259, 256)
    (58, 0, 2)
    """
    return round((length - size) / 2)


def check_mean_std(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises unless `mean` and `std` hold one number for each channel and every std is above zero."""
    if len(mean) != len(std) or not len(mean):
        raise UserError(f"mean and std need one number for each channel, but have {len(mean)} and {len(std)}")
    if min(std) <= 0:
        raise UserError(f"std divides, so it must be above 0, but is {tuple(std)}")
