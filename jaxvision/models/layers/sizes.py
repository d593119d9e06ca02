"""Checks of the sizes and images that users pass to models."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp

from jaxvision.errors import UserError

Size = int | tuple[int, int]  # the side of a square, or (height, width)


def require_int(what: str, value: Any, least: int) -> None:
    """Raises an error unless `value` is an integer of at least `least`.

    Args:
      what: name of the argument, for the message.
      value: the argument.
      least: smallest valid value.

    Raises:
      UserError: `value` is not an integer, is a bool, or is too small.

    >>> require_int("depth", 12, 1)
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise UserError(f"{what}: got {value!r}, expected an integer, {least} or more.")


def pair(what: str, size: Any) -> tuple[int, int]:
    """Returns (height, width) of a size that is given as one integer or as two.

    Args:
      what: name of the argument, for the message.
      size: pixels: an integer, or (height, width) as a tuple or list.

    Raises:
      UserError: `size` is neither.

    >>> pair("image_size", 224), pair("image_size", (224, 160))
    ((224, 224), (224, 160))
    """
    both = tuple(size) if isinstance(size, list | tuple) else (size, size)
    integers = all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in both)
    if len(both) != 2 or not integers or min(both) < 1:
        raise UserError(f"{what}: got {size!r}, expected pixels as an integer, 1 or more, or as (height, width).")
    return int(both[0]), int(both[1])


def side(size: tuple[int, int]) -> Size:
    """Returns one integer for a square, and `size` (height, width) otherwise. The inverse of `pair`.

    >>> side((224, 224)), side((224, 160))
    (224, (224, 160))
    """
    return size[0] if size[0] == size[1] else size


def check_divisible(image_size: Any, patch_size: Any) -> None:
    """Raises an error unless `patch_size` divides `image_size`.

    Args:
      image_size: pixels: an integer, or (height, width).
      patch_size: the same for a patch.

    Raises:
      UserError: it does not. The message contains the nearest valid sizes.
    """
    image, patch = pair("image_size", image_size), pair("patch_size", patch_size)
    if any(n % p for n, p in zip(image, patch, strict=True)):
        lower = [n // p * p for n, p in zip(image, patch, strict=True)]
        nearest = (
            (lower[0] or patch[0], lower[1] or patch[1]),
            (lower[0] + patch[0], lower[1] + patch[1]),
        )
        raise UserError(
            f"image_size: got {side(image)}, expected a multiple of the patch size {side(patch)}. "
            f"The nearest are {side(nearest[0])} and {side(nearest[1])}."
        )


def check_images(images: jax.Array, in_channels: int, size: tuple[int, int] | None = None) -> None:
    """Raises an error if a model does not accept the shape or the dtype of `images`.

    Args:
      images: float [b, h, w, in_channels], normalized.
      in_channels: channels that the model accepts.
      size: (height, width) that the model accepts; None for any.

    Raises:
      UserError: the shape differs, or the dtype is an integer, which means that the pixels are not normalized.
    """
    if images.ndim != 4 or images.shape[-1] != in_channels:
        raise UserError(
            f"images: got shape {list(images.shape)}, expected [b, h, w, {in_channels}]. Put the channels last."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images: got {images.dtype}, expected normalized floats. Prepare image files with "
            "jaxvision.load_classifier(...).images(files)."
        )
    if size is not None and images.shape[1:3] != size:
        raise UserError(
            f"images: got shape {list(images.shape)}, expected [b, {size[0]}, {size[1]}, {in_channels}]. Resize the "
            "images, or create the model with another image_size or with dynamic_image_size=True."
        )
