"""Sizes as users give them: one number or (height, width), checked once."""

from __future__ import annotations

import numbers
from typing import Any

from jaxvision.errors import UserError


def require_int(what: str, value: Any, least: int) -> None:
    """Raises unless `value` is a whole number, `least` or more.

    >>> require_int("depth", 12, 1)
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise UserError(f"{what} is a whole number, {least} or more; got {value!r}")


def pair(what: str, size: Any) -> tuple[int, int]:
    """Returns (height, width) of a size that is given as one whole number or as two.

    >>> pair("image_size", 224), pair("image_size", (224, 160))
    ((224, 224), (224, 160))
    """
    both = tuple(size) if isinstance(size, list | tuple) else (size, size)
    whole = all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in both)
    if len(both) != 2 or not whole or min(both) < 1:
        raise UserError(f"{what} is a whole number of pixels, 1 or more, or (height, width); got {size!r}")
    return int(both[0]), int(both[1])


def side(size: tuple[int, int]) -> int | tuple[int, int]:
    """Returns the side of a square, (height, width) of anything else.

    >>> side((224, 224)), side((224, 160))
    (224, (224, 160))
    """
    return size[0] if size[0] == size[1] else size


def check_divisible(image_size: Any, patch_size: Any) -> None:
    """Raises when patches do not tile the image; each size is a whole number or (height, width)."""
    image, patch = pair("image_size", image_size), pair("patch_size", patch_size)
    if any(n % p for n, p in zip(image, patch, strict=True)):
        lower = [n // p * p for n, p in zip(image, patch, strict=True)]
        nearest = (
            (lower[0] or patch[0], lower[1] or patch[1]),
            (lower[0] + patch[0], lower[1] + patch[1]),
        )
        raise UserError(
            f"image_size {side(image)} is not divisible by the patch size {side(patch)}; "
            f"the nearest sizes that are: {side(nearest[0])} and {side(nearest[1])}"
        )
