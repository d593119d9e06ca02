"""The classifier: the last linear layer."""

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
    """Returns the layer from pooled features [b, features] to logits [b, num_classes], or None for 0 classes.

    Assign the result to an attribute of a module. It can be replaced by another head later.

    Args:
      features: width of the input.
      num_classes: width of the output; 0 for a model that returns its pooled features.
      kernel_init: initializer of the kernel. Default: PyTorch's, U(+-1/sqrt(features)).
      bias_init: initializer of the bias. Default: PyTorch's, the same distribution.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of kernel and bias.
      rngs: stream ``params``.

    Example:
      >>> linear_head(512, 10, rngs=nnx.Rngs(0)).kernel.shape
      (512, 10)
    """
    if num_classes == 0:
        return nnx.data(None)  # with a plain None, nnx would not accept a layer there later
    return nnx.Linear(
        features,
        num_classes,
        kernel_init=kernel_init,
        bias_init=torch_default_bias(features) if bias_init is None else bias_init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
