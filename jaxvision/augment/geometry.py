"""Geometric transforms of one image [h, w, c], inside jit: resize, crop, flip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxvision.augment import rand_augment as ra
from jaxvision.augment.preprocess import Preprocess
from jaxvision.augment.resampling import crop_passes
from jaxvision.errors import unknown_name_error


def resize_and_crop(image: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Returns an image resized and cropped for evaluation, with the same pixels as `host.eval_transform`.

    An image that already has the right size costs nothing, because shapes are constants of the program.

    Args:
      image: float32 [h, w, c], whole numbers in 0 to 255.
      preprocess: the evaluation transform.

    >>> resize_and_crop(jnp.ones((10, 20, 3)), Preprocess(image_size=8)).shape
    (8, 8, 3)
    """
    check_interpolation(preprocess.interpolation)
    h, w, c = image.shape
    size = preprocess.image_size
    passes = crop_passes((h, w), preprocess.resized_shape(h, w), size, preprocess.interpolation)
    for axis, start, stop, _ in passes:
        image = jax.lax.slice_in_dim(image, start, stop, axis=axis)
    for axis, _, _, weights in passes:
        if weights is not None:  # of 22 bits, so that the sums fit into an int32
            sums = jnp.einsum(("oh,hwc->owc", "ow,hwc->hoc")[axis], weights, image.astype(jnp.int32))
            image = jnp.clip((sums + (1 << 21)) >> 22, 0, 255).astype(jnp.float32)
    h, w, _ = image.shape
    if h < size or w < size:
        top, left = (size - h) // 2, (size - w) // 2
        canvas = jnp.broadcast_to(jnp.asarray(preprocess.fill(c), jnp.float32)[None, None], (size, size, c))
        image = canvas.at[top : top + h, left : left + w].set(image)
    return image


def check_interpolation(interpolation: str) -> None:
    """Raises `UserError` unless the device can interpolate images in this way."""
    if interpolation not in ("bilinear", "bicubic"):
        raise unknown_name_error(
            "interpolation", interpolation, ("bilinear", "bicubic"), expected="a filter of the device"
        )


def random_crop(image: jax.Array, key: jax.Array, *, padding: int) -> jax.Array:
    """Returns a random part [h, w, c] of an image [h, w, c] that is padded by `padding` black pixels on each side."""
    h, w, c = image.shape
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    u = jax.random.uniform(key, (2,))
    return jax.lax.dynamic_slice(padded, (*below(u, 2 * padding + 1), 0), (h, w, c))


def random_box(
    key: jax.Array, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """Returns (top, left, height, width), int32 [4], of a random part of an image; see `host.random_box`."""
    h, w, top, left = random_rectangles(jax.random.uniform(key, (32,)), height, width, area=scale, ratio=ratio)
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = jnp.argmax(fits)
    # Used if none of the ten fits: the largest centered rectangle of an allowed shape.
    central_w = min(width, round(height * ratio[1]))
    central_h = min(height, round(width / ratio[0]))
    central = (height - central_h) // 2, (width - central_w) // 2, central_h, central_w
    return jnp.where(fits[first], jnp.stack([top, left, h, w])[:, first], jnp.array(central, jnp.int32))


def random_rectangles(
    u: jax.Array, height: int, width: int, *, area: Sequence[Any], ratio: tuple[float, float]
) -> tuple[jax.Array, ...]:
    """Returns (height, width, top, left), each int32 [10], of ten random rectangles; some may be larger than the image.

    Args:
      u: random numbers in [0, 1), [32].
      height: height of the image in pixels.
      width: width of the image in pixels.
      area: smallest and largest share of the image's area.
      ratio: smallest and largest width / height. Its logarithm is drawn uniformly.
    """
    pixels = height * width * (area[0] + u[0:10] * (area[1] - area[0]))
    log_ratio = math.log(ratio[0]) + u[10:20] * (math.log(ratio[1]) - math.log(ratio[0]))
    h = jnp.round(jnp.sqrt(pixels * jnp.exp(-log_ratio))).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(pixels * jnp.exp(log_ratio))).astype(jnp.int32)
    return h, w, below(u[20], jnp.maximum(height - h, 0) + 1), below(u[21], jnp.maximum(width - w, 0) + 1)


def below(u: jax.Array, n: jax.Array | int) -> jax.Array:
    """Returns a whole number in 0 to n - 1 for each `u` in [0, 1)."""
    return jnp.floor(u * n).astype(jnp.int32)


def random_resized_crop(
    image: jax.Array,
    key: jax.Array,
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
) -> jax.Array:
    """Returns a random part of an image [h, w, c], resized to [size, size, c] and antialiased."""
    height, width, _ = image.shape
    return resize_box(
        image, random_box(key, height, width, scale=scale, ratio=ratio), size=size, interpolation=interpolation
    )


def resize_box(image: jax.Array, box: jax.Array, *, size: int, interpolation: str) -> jax.Array:
    """Returns the part (top, left, height, width) of an image [h, w, c], resized to [size, size, c] and rounded."""
    c = image.shape[-1]
    corner, sides = box[:2].astype(jnp.float32), box[2:].astype(jnp.float32)
    zoom = size / sides
    resized = jax.image.scale_and_translate(image, (size, size, c), (0, 1), zoom, -corner * zoom, interpolation)
    return ra.floor(jnp.clip(resized, 0, 255) + 0.5)


def random_flip(image: jax.Array, key: jax.Array, *, probability: float, axis: int = 1) -> jax.Array:
    """Returns an image [h, w, c], flipped with this probability along `axis`: 1 is left-right, 0 is upside-down."""
    return jnp.where(jax.random.uniform(key) < probability, jnp.flip(image, axis), image)
