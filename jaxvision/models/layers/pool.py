"""Pooling of feature maps [b, h, w, c], with PyTorch's behavior at the borders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.layers.convolve import Padding, convolve, same_padding, shifts
from jaxvision.models.layers.materialize import materialize
from jaxvision.platform import by_platform

#: Kinds of `global_pool`, with the number of output channels per input channel.
GLOBAL_POOLS = {"avg": 1, "max": 1, "avgmax": 1, "catavgmax": 2, "": 1}


def max_pool(x: jax.Array, *, stride: int = 2, padding: str = "torch") -> jax.Array:
    """Returns the maxima of 3x3 windows.

    Args:
      x: [b, h, w, c].
      stride: 1 or 2.
      padding: ``"torch"`` pads one pixel of -inf on each side, ``"zero"`` one pixel of 0 (BiT). ``"same"`` pads -inf
        like TensorFlow, with the odd pixel at the bottom and right.

    Returns:
      [b, ceil(h / stride), ceil(w / stride), c].

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    if padding == "zero":
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pads = {"torch": ((1, 1), (1, 1)), "zero": ((0, 0), (0, 0)), "same": same_padding(x.shape[1:3], 3, stride)}[padding]
    # On CPU the gradient of reduce_window takes six times as long as that of `_shifted_max`.
    return by_platform(
        x,
        cpu=lambda x: _shifted_max(x, stride, pads),
        default=lambda x: _window_max(x, stride, pads),
    )


def _window_max(x: jax.Array, stride: int, pads: Padding) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), *pads, (0, 0)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _shifted_max(x: jax.Array, stride: int, pads: Padding) -> jax.Array:
    return functools.reduce(jnp.maximum, _taps(x, stride, pads))


@_shifted_max.defjvp
def _shifted_max_jvp(stride, pads, primals, tangents):
    (x,), (dx,) = primals, tangents
    # As in PyTorch, the first of several maxima receives the gradient, or the last NaN.
    best, *rest = _taps(x, stride, pads)
    index = jnp.zeros(best.shape, jnp.int8)
    for n, pixels in enumerate(rest, 1):
        is_better = (pixels > best) | jnp.isnan(pixels)
        best, index = jnp.where(is_better, pixels, best), jnp.where(is_better, jnp.int8(n), index)
    return _shifted_max(x, stride, pads), _at(materialize(index), dx, stride, pads)


# The checkpoint keeps one byte for each window for the backward pass.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))
def _at(index, dx, stride, pads):
    """Returns the pixel of each window of `dx` that the index names."""
    if stride == 1:
        return sum(jnp.where(index == n, pixels, 0) for n, pixels in enumerate(_taps(dx, stride, pads, 0)))
    assert stride == 2, stride
    gradient = functools.partial(_interleaved_gradient, index=index, shape=dx.shape, pads=pads)
    return jax.linear_transpose(gradient, jax.ShapeDtypeStruct(index.shape, dx.dtype))(dx)[0]


def _taps(x: jax.Array, stride: int, pads: Padding, outside: float = -jnp.inf) -> list[jax.Array]:
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=outside)
    return [pixels for _, pixels in shifts(x, 3, stride)]


def _interleaved_gradient(dy, index, shape, pads):
    """Returns the gradient of the input, of the shape `shape`, for windows with the stride 2.

    Each pixel gathers its gradient from the windows that cover it. A pixel of an even row is in the top row of one
    window and in the bottom row of the one above; a pixel of an odd row is in the middle of one. The same holds for
    columns.
    """
    (_, h, w, _), (b, rows, columns, c) = shape, dy.shape
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    dy, index = jnp.pad(dy, around), jnp.pad(index, around, constant_values=-1)

    def gather(i, j):  # what the tap (i, j) gives to the even or odd pixels
        rows_of_tap, columns_of_tap = (slice(0 if n == 2 else 1, None if n != 2 else -1) for n in (i, j))
        return jnp.where(index[:, rows_of_tap, columns_of_tap] == 3 * i + j, dy[:, rows_of_tap, columns_of_tap], 0)

    even, odd = (0, 2), (1,)
    quarters = [[sum(gather(i, j) for i in ii for j in jj) for jj in (even, odd)] for ii in (even, odd)]
    lines = [jnp.stack(pair, axis=3).reshape(b, rows + 1, 2 * columns + 2, c) for pair in quarters]
    pixels = jnp.stack(lines, axis=2).reshape(b, 2 * rows + 2, 2 * columns + 2, c)
    (top, _), (left, _) = pads
    return pixels[:, top : top + h, left : left + w]


def avg_pool(x: jax.Array) -> jax.Array:
    """Returns the means of 2x2 tiles of `x` [b, h, w, c]: [b, ceil(h / 2), ceil(w / 2), c].

    A tile that extends past the bottom or right border is the mean of its pixels inside the image, as in PyTorch's
    ``AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)``.

    >>> avg_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, :, :, 0].tolist()
    [[2.0, 3.5], [6.5, 8.0]]
    """
    b, h, w, c = x.shape
    if h % 2 or w % 2:  # repeat the border: the mean of a pixel and its copy is the pixel
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean(axis=(2, 4))


def tile_pool(x: jax.Array) -> jax.Array:
    """Returns the means of whole 2x2 tiles of `x` [b, h, w, c]: [b, h // 2, w // 2, c].

    An odd row or column at the end is ignored.

    >>> tile_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, :, :, 0].tolist()
    [[2.0]]
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def blur_pool(x: jax.Array, *, stride: int = 2, border: str = "reflect") -> jax.Array:
    """Returns every `stride`-th pixel of the image after blurring by [1, 2, 1] / 4 in both directions.

    Zhang, "Making Convolutional Networks Shift-Invariant Again", https://arxiv.org/abs/1904.11486

    Args:
      x: [b, h, w, c].
      stride: 1 or 2.
      border: ``"reflect"`` extends the image by reflection, ``"zero"`` by zeros.

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
    """Returns the means over the image: [b, h, w, c] -> [b, c].

    >>> global_avg_pool(jnp.ones((2, 7, 7, 5))).shape
    (2, 5)
    """
    return x.mean(axis=(1, 2))


def global_pool(x: jax.Array, kind: str = "avg") -> jax.Array:
    """Returns the features that the head takes, pooled over the image.

    Args:
      x: [b, h, w, c].
      kind: ``"avg"``; ``"max"``; ``"avgmax"``, the mean of the two; ``"catavgmax"``, the two concatenated; or ``""``,
        which returns `x`.

    Returns:
      [b, c], or [b, 2 c] for ``"catavgmax"``, or [b, h, w, c] for ``""``.

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
    # The gradient of `max` compares pixels with the maximum. XLA may compute a pixel twice and round it differently;
    # then no pixel equals the maximum and the gradient is 0 / 0. So the pixel is selected by index, as in PyTorch.
    b, h, w, c = x.shape
    x = x.reshape(b, h * w, c)
    return jnp.take_along_axis(x, x.argmax(axis=1, keepdims=True), axis=1)[:, 0]


def check_global_pool(kind: str, num_classes: int) -> None:
    """Raises an error unless a convnet with `num_classes` classes supports the pooling `kind`.

    Raises:
      UserError: the kind is unknown, or there is a head but no pooling before it.
    """
    if kind not in GLOBAL_POOLS:
        raise unknown_name_error("global_pool", kind, GLOBAL_POOLS)
    if not kind and num_classes:
        raise UserError(
            f"global_pool: got '' with {num_classes} classes, but the head needs pooled features. Set num_classes=0."
        )
