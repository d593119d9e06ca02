"""The last layer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.init import torch_default, torch_default_bias


def linear_head(
    features: int,
    num_classes: int,
    *,
    kernel_init: Any = torch_default,
    bias_init: Any = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> Any:
    """Returns the layer from pooled features [b, features] to logits [b, num_classes], or nothing for 0 classes.

    Assign it to an attribute of a module: that of no classes reads None there, and may be given a head later.

    Args:
      features: width of its input.
      num_classes: width of its output; 0 for a model that ends in its pooled features.
      kernel_init: U(+-1/sqrt(features)), PyTorch's default.
      bias_init: the same by default.
      dtype: of the computation.
      param_dtype: of kernel and bias.
      rngs: the stream ``params``.

    Example:
      >>> linear_head(512, 10, rngs=nnx.Rngs(0)).kernel.shape
      (512, 10)
    """
    if num_classes == 0:
        return nnx.data(None)  # a plain None would fix the attribute to be static for ever
    return nnx.Linear(
        features,
        num_classes,
        kernel_init=kernel_init,
        bias_init=torch_default_bias(features) if bias_init is None else bias_init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
