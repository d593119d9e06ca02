"""Pooling of [b, h, w, c] feature maps, with PyTorch's borders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.layers.conv import Padding, convolve, same_padding, shifts
from jaxvision.platform import by_platform

# What `global_pool` knows: how many channels it puts out for each that it is given.
GLOBAL_POOLS = {"avg": 1, "max": 1, "avgmax": 1, "catavgmax": 2, "": 1}


def max_pool(x: jax.Array, *, stride: int = 2, padding: str = "torch") -> jax.Array:
    """Returns the maxima of 3x3 windows at every `stride`-th pixel, [b, ceil(h / stride), ceil(w / stride), c].

    Args:
      x: [b, h, w, c].
      stride: 1 or 2.
      padding: ``"torch"`` pads one pixel of -inf on each side, ``"zero"`` one of 0 (BiT); ``"same"`` pads with -inf as
        TensorFlow does, the odd pixel at the bottom and right.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    if padding == "zero":
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pads = {"torch": ((1, 1), (1, 1)), "zero": ((0, 0), (0, 0)), "same": same_padding(x.shape[1:3], 3, stride)}[padding]
    # On CPUs the gradient of reduce_window is nine times slower than that of nine shifted maxima. The two differ only
    # in how they share a gradient among equal maxima; behind a ReLU those are zeros, which pass none on.
    return by_platform(
        x,
        cpu=functools.partial(_shifted_max, stride=stride, pads=pads),
        default=functools.partial(_window_max, stride=stride, pads=pads),
    )


def _window_max(x: jax.Array, stride: int, pads: Padding) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), *pads, (0, 0)))


def _shifted_max(x: jax.Array, stride: int, pads: Padding) -> jax.Array:
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return functools.reduce(jnp.maximum, (seen for _, seen in shifts(x, 3, stride)))


def avg_pool(x: jax.Array) -> jax.Array:
    """Returns the means of 2x2 tiles, [b, ceil(h / 2), ceil(w / 2), c].

    A tile that sticks out at the bottom or right is the mean of the pixels it has, as with PyTorch's
    ``AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)``.

    >>> avg_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, :, :, 0].tolist()
    [[2.0, 3.5], [6.5, 8.0]]
    """
    b, h, w, c = x.shape
    if h % 2 or w % 2:  # the border counts twice: the mean of a pixel and its copy is the pixel
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean(axis=(2, 4))


def tile_pool(x: jax.Array) -> jax.Array:
    """Returns the means of whole 2x2 tiles, [b, h // 2, w // 2, c]: an odd row or column at the end is left out.

    >>> tile_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, :, :, 0].tolist()
    [[2.0]]
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def blur_pool(x: jax.Array, *, stride: int = 2, border: str = "reflect") -> jax.Array:
    """Returns every `stride`-th pixel of the image blurred by [1, 2, 1] / 4 both ways.

    Zhang, "Making Convolutional Networks Shift-Invariant Again", https://arxiv.org/abs/1904.11486

    Args:
      x: [b, h, w, c].
      stride: 1 or 2.
      border: ``"reflect"`` mirrors the image at its borders, ``"zero"`` continues it by zeros.

    Returns:
      [b, ceil(h / stride), ceil(w / stride), c].

    >>> blur_pool(jnp.ones((1, 4, 4, 1)), border="zero")[0, :, :, 0].tolist()
    [[0.5625, 0.75], [0.75, 1.0]]
    """
    mode = {"reflect": "reflect", "zero": "constant"}[border]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    binomial = jnp.array([0.25, 0.5, 0.25], x.dtype)
    c = x.shape[-1]
    kernel = jnp.tile((binomial[:, None] * binomial[None, :])[:, :, None, None], (1, 1, 1, c))
    return convolve(padded, kernel, stride=stride, padding=((0, 0), (0, 0)), groups=c)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Returns the mean over the image, [b, c].

    >>> global_avg_pool(jnp.ones((2, 7, 7, 5))).shape
    (2, 5)
    """
    return x.mean(axis=(1, 2))


def global_pool(x: jax.Array, kind: str = "avg") -> jax.Array:
    """Returns what is left of the image for the head: [b, c], or [b, 2 c] for ``"catavgmax"``.

    Args:
      x: [b, h, w, c].
      kind: ``"avg"``, ``"max"``, their mean ``"avgmax"``, both one after the other ``"catavgmax"``, or ``""`` for the
        image as it is, [b, h, w, c].

    >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    >>> {kind: global_pool(x, kind).tolist() for kind in ("avg", "max", "avgmax")}
    {'avg': [[3.0, 4.0]], 'max': [[6.0, 7.0]], 'avgmax': [[4.5, 5.5]]}
    >>> global_pool(x, "catavgmax").tolist(), global_pool(x, "").shape
    ([[3.0, 4.0, 6.0, 7.0]], (1, 2, 2, 2))
    """
    if kind == "":
        return x
    if kind == "avg":
        return global_avg_pool(x)
    maxima = _global_max(x)
    if kind == "max":
        return maxima
    if kind == "avgmax":
        return 0.5 * (global_avg_pool(x) + maxima)
    assert kind == "catavgmax", kind
    return jnp.concatenate([global_avg_pool(x), maxima], axis=-1)


def _global_max(x: jax.Array) -> jax.Array:
    # The gradient of `max` asks which pixels equal the maximum. XLA may compute a pixel twice and round it differently;
    # then none does, and the gradient is 0 / 0. So the pixel is picked, as in PyTorch.
    b, h, w, c = x.shape
    x = x.reshape(b, h * w, c)
    return jnp.take_along_axis(x, x.argmax(axis=1, keepdims=True), axis=1)[:, 0]


def check_global_pool(kind: str, num_classes: int) -> None:
    """Raises unless a convnet with a head of `num_classes` can pool by `kind`.

    Raises:
      UserError: an unknown kind, or no pooling in front of a head.
    """
    if kind not in GLOBAL_POOLS:
        raise unknown_name_error("global_pool", kind, GLOBAL_POOLS)
    if not kind and num_classes:
        raise UserError("global_pool='' keeps the feature map, which a head cannot take: say num_classes=0, too")
