"""The dtype in which a layer computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp


def promote_dtype(arrays: Sequence[Any], *, dtype: Any = None) -> tuple[Any, ...]:
    """Returns arrays cast to the dtype in which a layer computes, as Flax's layers do.

    Args:
      arrays: inputs and parameters of the layer. None stays None, such as the bias of a layer without one.
      dtype: a floating dtype. None: the one to which JAX promotes the arrays, or float32 if they are integers.

    Example:
      >>> kernel = jnp.ones(2, "bfloat16")
      >>> [x.dtype.name for x in promote_dtype((jnp.ones(2, "uint8"), kernel))]
      ['bfloat16', 'bfloat16']
      >>> [x.dtype.name for x in promote_dtype((jnp.ones(2), kernel), dtype="bfloat16")]
      ['bfloat16', 'bfloat16']
    """
    if dtype is None:
        dtype = jnp.result_type(*(x for x in arrays if x is not None))
        if not jnp.issubdtype(dtype, jnp.inexact):
            dtype = jnp.promote_types(jnp.float32, dtype)
    return tuple(None if x is None else jnp.asarray(x, dtype) for x in arrays)
