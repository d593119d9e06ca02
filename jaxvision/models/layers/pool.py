"""Pooling of [b, h, w, c] feature maps, with PyTorch's borders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxvision.models.layers.conv import shifts


def max_pool(x: jax.Array) -> jax.Array:
    """Returns the maxima of 3x3 windows at every second pixel, [b, ceil(h / 2), ceil(w / 2), c]; borders are -inf.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    # On CPUs the gradient of reduce_window is nine times slower than that of nine shifted maxima. The two differ only
    # in how they share a gradient among equal maxima; behind a ReLU those are zeros, which pass none on.
    return lax.platform_dependent(x, cpu=_shifted_max, default=_window_max)


def _window_max(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _shifted_max(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return functools.reduce(jnp.maximum, (seen for _, seen in shifts(x, 3, 2)))


def avg_pool(x: jax.Array) -> jax.Array:
    """Returns the means of 2x2 tiles, [b, ceil(h / 2), ceil(w / 2), c].

    A tile that sticks out at the bottom or right is the mean of the pixels it has, as with PyTorch's
    ``AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)``.

    >>> avg_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, :, :, 0].tolist()
    [[2.0, 3.5], [6.5, 8.0]]
    """
    b, h, w, c = x.shape
    # An odd border row counts twice: the mean of a pixel and its copy is the pixel.
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean(axis=(2, 4))


@jax.jit  # which gives it a name in the program, by which analysis.cost knows it
def global_avg_pool(x: jax.Array) -> jax.Array:
    """Returns the mean over the image, [b, c].

    >>> global_avg_pool(jnp.ones((2, 7, 7, 5))).shape
    (2, 5)
    """
    return x.mean(axis=(1, 2))
