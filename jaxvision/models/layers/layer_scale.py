"""A learned scale of each channel of a residual branch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.init import constant


class LayerScale(nnx.Module):
    """Multiplies each channel of a residual branch by a learned factor, which starts near zero.

    Touvron et al., "Going deeper with Image Transformers", https://arxiv.org/abs/2103.17239

    Args:
      features: width d of the input [..., d].
      init: initial value of ``gamma``, such as 1e-5.
      param_dtype: dtype of ``gamma``. The output has the input's dtype.

    Example:
      >>> scale = LayerScale(8, 1e-5)
      >>> scale(jnp.ones((1, 5, 8))).shape
      (1, 5, 8)
    """

    def __init__(self, features: int, init: float, *, param_dtype: Any = jnp.float32):
        self.gamma = nnx.Param(constant(init)(None, (features,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the scaled `x`, in its shape and dtype."""
        return x * self.gamma[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
