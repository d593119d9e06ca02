"""Arrays whose values are drawn or read when they are placed on the devices, one array at a time.

A model that is sharded over many devices may not fit on one of them, nor in the memory of a host. Within `deferred`,
models are built with `Deferred` arrays, and `jaxvision.train.state.initialize` places each straight into its sharding.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_DEFERRED = contextvars.ContextVar("deferred", default=False)


@contextlib.contextmanager
def deferred(defer: bool = True) -> Iterator[None]:
    """A context in which the initializers of jaxvision return `Deferred` arrays, and `load_timm` sets them.

    Args:
      defer: False ends it for a part of the program that computes with initial values.

    >>> from jaxvision.models.layers.init import normal
    >>> with deferred():
    ...     kernel = normal(0.02)(jax.random.key(0), (8, 16))
    >>> kernel.shape, bool((kernel.place(None) == normal(0.02)(jax.random.key(0), (8, 16))).all())
    ((8, 16), True)
    """
    token = _DEFERRED.set(defer)
    try:
        yield
    finally:
        _DEFERRED.reset(token)


def is_deferring() -> bool:
    """Returns whether the caller runs within `deferred`."""
    return _DEFERRED.get()


class Deferred:
    """An array of known shape and dtype without values.

    Attributes:
      shape, dtype: of the array.
      place: (sharding) -> the array on its devices. None: on JAX's default device.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, place: Callable[[jax.sharding.Sharding | None], jax.Array]):
        self.shape = tuple(shape)
        self.dtype = jnp.dtype(dtype)
        self.place = place

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.place(None), dtype)


def place_parts(
    part: Callable[[Any], np.ndarray], shape: tuple[int, ...], sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """Returns an array on its devices, each of which gets only its own part.

    Args:
      part: (index, a tuple of slices or ``...``) -> that part of the values. Called for the devices of this process.
      shape: of the whole array.
      sharding: of the array. None: JAX's default device.

    Example:
      >>> place_parts(np.arange(3).__getitem__, (3,), None)
      Array([0, 1, 2], dtype=int32)
    """
    if sharding is None or (sharding.is_fully_addressable and sharding.is_fully_replicated):
        return jax.device_put(part(...), sharding)
    indices = sharding.addressable_devices_indices_map(shape)
    shards = [jax.device_put(part(index), device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)
