"""Initializers of parameters, which draw random numbers in blocks of one shape.

XLA compiles a random number generator for every shape, which takes a third of a second each on a CPU. For the shapes of
an EfficientNet that takes longer than its first epoch on a small dataset. So numbers are drawn in blocks of one shape,
which compile once, and NumPy assembles the blocks. Under `jax.jit` one call per tensor returns the same numbers.

Within `shapes_only` no numbers are drawn. Within `jaxvision.models.layers.deferred.deferred` each array is drawn when
it is placed on the devices.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvision.models.layers.deferred import Deferred, is_deferring, place_parts

Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> values, as in Flax

_BLOCK = 2**16
_SHAPES_ONLY = contextvars.ContextVar("shapes only", default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """A context in which the initializers of this module return zeros that take no memory and no time.

    It builds a model of a thousand layers in a fraction of a second. `jax.eval_shape` would take several seconds.

    >>> with shapes_only():
    ...     kernel = normal(0.02)(jax.random.key(0), (1000, 1000, 1000))
    >>> kernel.shape, kernel.strides
    ((1000, 1000, 1000), (0, 0, 0))
    """
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


def normal(stddev: float) -> Initializer:
    """Returns the initializer N(0, stddev^2).

    >>> normal(0.02)(jax.random.key(0), (3, 3, 8, 16)).shape
    (3, 3, 8, 16)
    """
    return lambda key, shape, dtype=jnp.float32: _sample(jax.random.normal, key, shape, stddev, dtype)


def truncated_normal(stddev: float) -> Initializer:
    """Returns the initializer N(0, stddev^2), truncated at two standard deviations.

    >>> bool(abs(truncated_normal(0.1)(jax.random.key(0), (100,))).max() <= 0.2)
    True
    """
    return lambda key, shape, dtype=jnp.float32: _sample(_truncated, key, shape, stddev, dtype)


def uniform(bound: float) -> Initializer:
    """Returns the initializer U(-bound, bound).

    >>> bool(abs(uniform(0.1)(jax.random.key(0), (100,))).max() < 0.1)
    True
    """
    return lambda key, shape, dtype=jnp.float32: _sample(_uniform, key, shape, bound, dtype)


def zeros(key: jax.Array | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns zeros; `key` is ignored.

    >>> zeros(jax.random.key(0), (2,)).tolist()
    [0.0, 0.0]
    """
    return _filled(shape, 0, dtype)


def ones(key: jax.Array | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns ones; `key` is ignored.

    >>> ones(jax.random.key(0), (2,)).tolist()
    [1.0, 1.0]
    """
    return _filled(shape, 1, dtype)


def constant(value: float) -> Initializer:
    """Returns the initializer that sets every element to `value`; it ignores the key.

    >>> constant(0.5)(None, (2,)).tolist()
    [0.5, 0.5]
    """
    return lambda key, shape, dtype=jnp.float32: _filled(shape, value, dtype)


def halves(first: Initializer, second: Initializer) -> Initializer:
    """Returns an initializer that applies `first` and `second` to the two halves of the last axis.

    >>> halves(zeros, ones)(jax.random.key(0), (4,)).tolist()
    [0.0, 0.0, 1.0, 1.0]
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        if _SHAPES_ONLY.get():
            return _filled(shape, 0, dtype)
        half = (*shape[:-1], shape[-1] // 2)
        keys = jax.random.split(key)
        parts = [first(keys[0], half, dtype), second(keys[1], half, dtype)]
        if is_deferring():
            return _deferred(shape, dtype, lambda: np.concatenate([np.asarray(part) for part in parts], axis=-1))
        return jnp.concatenate(parts, axis=-1)

    return init


def he_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns He's initial values for a kernel [k, k, in, out], by fan-out: N(0, 2 / (k k out)).

    >>> he_normal(jax.random.key(0), (3, 3, 8, 16)).shape
    (3, 3, 8, 16)
    """
    return normal(math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1])))(key, shape, dtype)


def torch_default(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns PyTorch's default initial values for a kernel [..., in, out]: U(+-1/sqrt(fan_in)).

    >>> bool(abs(torch_default(jax.random.key(0), (64, 10))).max() <= 1 / 8)
    True
    """
    return uniform(math.prod(shape[:-1]) ** -0.5)(key, shape, dtype)


def torch_default_bias(fan_in: int) -> Initializer:
    """Returns PyTorch's default initializer for the bias of a layer with `fan_in` inputs, U(+-1/sqrt(fan_in)).

    >>> bool(abs(torch_default_bias(64)(jax.random.key(0), (1000,))).max() <= 1 / 8)
    True
    """
    return uniform(fan_in**-0.5)


def streams(params: int, dropout: int) -> nnx.Rngs:
    """Returns an `nnx.Rngs` with the streams ``params`` and ``dropout``, whose counters are Python integers.

    The keys equal those of ``nnx.Rngs(params=params, dropout=dropout)``. In Flax's streams the counters are JAX arrays.
    Tracing those, building an abstract ResNet-152 took four seconds instead of half a second.

    Args:
      params: seed of the parameters.
      dropout: seed of dropout and stochastic depth.

    >>> streams(0, 1).params().shape
    ()
    """
    rngs: Any = nnx.Rngs()
    rngs.params, rngs.dropout = (
        _Stream(jax.random.key(params), tag="params"),
        _Stream(jax.random.key(dropout), tag="dropout"),
    )
    return rngs


class _Stream(nnx.RngStream):
    def __init__(self, key: jax.Array, *, tag: str):
        super().__init__(key, tag=tag)
        self.calls = 0

    def __call__(self) -> jax.Array:
        if _SHAPES_ONLY.get():
            return self.key.get_value()
        self.calls += 1
        return jax.random.fold_in(self.key.get_value(), self.calls - 1)

    def fork(self, *, split: None = None) -> nnx.RngStream:  # type: ignore[override]
        return nnx.RngStream(self(), tag=self.tag)


def _filled(shape: Sequence[int], value: float, dtype: Any) -> Any:
    if _SHAPES_ONLY.get() or is_deferring():  # takes no memory
        return np.broadcast_to(np.asarray(value, dtype), shape)
    return jnp.full(shape, value, dtype)


def _deferred(shape: Sequence[int], dtype: Any, draw: Callable[[], np.ndarray]) -> Any:
    return Deferred(shape, dtype, lambda sharding: place_parts(draw().__getitem__, tuple(shape), sharding))


def _uniform(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1)


def _truncated(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    return jax.random.truncated_normal(key, -2, 2, shape)


@functools.partial(jax.jit, static_argnums=0)
def _block(draw: Callable[..., jax.Array], key: jax.Array, i: Any) -> jax.Array:
    return draw(jax.random.fold_in(key, i), (_BLOCK,))


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))  # traced once per shape, not once per layer
def _traced(draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...], scale: float, dtype: Any) -> Any:
    n = math.prod(shape)
    values = jax.vmap(lambda i: _block(draw, key, i))(jnp.arange(-(-n // _BLOCK))).reshape(-1)[:n].reshape(shape)
    return (values * scale).astype(dtype)


def _sample(
    draw: Callable[..., jax.Array], key: jax.Array, shape: Sequence[int], scale: float, dtype: Any
) -> jax.Array:
    if _SHAPES_ONLY.get():
        return _filled(shape, 0, dtype)
    if isinstance(key, jax.core.Tracer):
        return _traced(draw, key, tuple(shape), scale, jnp.dtype(dtype))
    if is_deferring():
        return _deferred(shape, dtype, lambda: _drawn(draw, key, shape, scale, dtype))
    return jnp.asarray(_drawn(draw, key, shape, scale, dtype))


def _drawn(
    draw: Callable[..., jax.Array], key: jax.Array, shape: Sequence[int], scale: float, dtype: Any
) -> np.ndarray:
    """Returns the values on the host."""
    n = math.prod(shape)
    values = np.empty(n, dtype)
    for i, start in enumerate(range(0, n, _BLOCK)):
        part = values[start : start + _BLOCK]
        part[...] = np.asarray(_block(draw, key, i))[: len(part)] * np.float32(scale)
    return values.reshape(shape)
