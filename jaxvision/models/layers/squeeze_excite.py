"""Squeeze-and-excitation: channels weighted by what the whole image holds.

Hu et al., "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507. There are two classes because timm has
two sets of names and of rules for the hidden width; the arithmetic is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.init import torch_default, torch_default_bias
from jaxvision.models.layers.width import make_divisible


class SqueezeExcite(nnx.Module):
    """Scales each channel of [b, h, w, c] by a gate in (0, 1), with the names and widths of timm's ResNets.

    Args:
      features: c. The hidden width is c / 16, rounded to a multiple of 8.
      dtype: of the computation; None takes the promoted type of input and parameters.
      param_dtype: of the parameters.
      kernel_init: of both 1x1 convolutions.
      rngs: the stream ``params``.

    Example:
      >>> gate = SqueezeExcite(256, rngs=nnx.Rngs(0))
      >>> gate(jnp.ones((1, 7, 7, 256))).shape, gate.fc1.kernel.shape
      ((1, 7, 7, 256), (1, 1, 256, 16))
    """

    def __init__(
        self,
        features: int,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = torch_default,
        rngs: nnx.Rngs,
    ):
        hidden = make_divisible(features / 16, round_limit=0.0)
        common = {"use_bias": True, "kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype}
        self.fc1 = Conv(features, hidden, 1, bias_init=torch_default_bias(features), **common, rngs=rngs)
        self.fc2 = Conv(hidden, features, 1, bias_init=torch_default_bias(hidden), **common, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [b, h, w, c] with its channels scaled."""
        squeezed = x.mean(axis=(1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(squeezed))))


class SqueezeExciteReduce(nnx.Module):
    """Scales each channel of [b, h, w, c] by a gate in (0, 1), with the names of timm's EfficientNets.

    Args:
      features: c.
      hidden: width between the two 1x1 convolutions.
      activation: between them; an EfficientNet uses the block's own.
      conv: makes a convolution from ``(in_features, out_features, kernel_size, use_bias=True)``.

    Example:
      >>> import functools
      >>> gate = SqueezeExciteReduce(96, 4, activation=nnx.silu, conv=functools.partial(Conv, rngs=nnx.Rngs(0)))
      >>> gate(jnp.ones((1, 7, 7, 96))).shape, gate.conv_reduce.kernel.shape
      ((1, 7, 7, 96), (1, 1, 96, 4))
    """

    def __init__(
        self, features: int, hidden: int, *, activation: Callable[[jax.Array], jax.Array], conv: Callable[..., Conv]
    ):
        self.conv_reduce = conv(features, hidden, 1, use_bias=True)
        self.conv_expand = conv(hidden, features, 1, use_bias=True)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [b, h, w, c] with its channels scaled."""
        squeezed = x.mean(axis=(1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.conv_expand(self.activation(self.conv_reduce(squeezed))))
