"""Squeeze-and-excitation and similar layers, which scale each channel by a gate computed from the whole image.

Hu et al., "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507. `SqueezeExcite` and
`SqueezeExciteReduce` compute the same function. They differ in parameter names and hidden width, as in timm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.init import torch_default, torch_default_bias
from jaxvision.models.layers.norm import LayerNorm
from jaxvision.models.layers.width import make_divisible


class SqueezeExcite(nnx.Module):
    """Scales each channel of [b, h, w, c] by a gate in (0, 1), with the names and widths of timm's ResNets.

    Args:
      features: channels c of the input.
      ratio: hidden width as a fraction of c, before rounding to a multiple of 8.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the parameters.
      kernel_init: initializer of the kernels of both 1x1 convolutions.
      rngs: stream ``params``.

    Example:
      >>> gate = SqueezeExcite(256, rngs=nnx.Rngs(0))
      >>> gate(jnp.ones((1, 7, 7, 256))).shape, gate.fc1.kernel.shape
      ((1, 7, 7, 256), (1, 1, 256, 16))
    """

    def __init__(
        self,
        features: int,
        *,
        ratio: float = 1 / 16,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = torch_default,
        rngs: nnx.Rngs,
    ):
        hidden = make_divisible(features * ratio, round_limit=0.0)
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
      features: channels c of the input.
      hidden: width between the two 1x1 convolutions.
      activation: function between them. In an EfficientNet it is the activation of the block.
      conv: function ``(in_features, out_features, kernel_size, use_bias=True)`` that returns a convolution.

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


class EfficientChannelAttention(nnx.Module):
    """Scales each channel of [b, h, w, c] by a gate computed from the means of the channel and its neighbors.

    Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
    https://arxiv.org/abs/1910.03151

    Args:
      features: channels c, from which the paper's rule derives the number of neighbors. Inputs may have another c.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the parameters.
      rngs: stream ``params``.

    Example:
      >>> gate = EfficientChannelAttention(256, rngs=nnx.Rngs(0))
      >>> gate(jnp.ones((1, 7, 7, 256))).shape, gate.conv.kernel.shape
      ((1, 7, 7, 256), (5, 1, 1))
    """

    def __init__(self, features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        half = int((math.log2(features) + 1) / 2)
        self.conv = nnx.Conv(
            1,
            1,
            max(half | 1, 3),  # odd
            padding="SAME",
            use_bias=False,
            kernel_init=torch_default,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [b, h, w, c] with its channels scaled."""
        b, _, _, c = x.shape
        gate = jax.nn.sigmoid(self.conv(x.mean(axis=(1, 2), keepdims=True).reshape(b, c, 1)))
        return x * gate.reshape(b, 1, 1, c)


class GlobalContext(nnx.Module):
    """Scales each channel of [b, h, w, c] by a gate computed from a weighted mean over the image.

    Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
    https://arxiv.org/abs/1904.11492. As in timm, the result of
    the gate's MLP multiplies the channels instead of being added to them.

    Args:
      features: channels c of the input.
      hidden: width between the two 1x1 convolutions of the gate.
      activation: function between them.
      conv: function ``(in_features, out_features, kernel_size, use_bias=True)`` that returns a convolution.
      dtype: dtype of the norm's computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the norm's parameters.
      rngs: stream ``params``, for the norm.

    Example:
      >>> import functools
      >>> rngs = nnx.Rngs(0)
      >>> gate = GlobalContext(96, 12, activation=nnx.silu, conv=functools.partial(Conv, rngs=rngs), rngs=rngs)
      >>> gate(jnp.ones((1, 7, 7, 96))).shape, gate.mlp_scale.fc1.kernel.shape
      ((1, 7, 7, 96), (1, 1, 96, 12))
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        conv: Callable[..., Conv],
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv_attn = conv(features, 1, 1, use_bias=True)
        self.mlp_scale = _ContextMlp(
            features, hidden, activation=activation, conv=conv, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [b, h, w, c] with its channels scaled."""
        weights = jax.nn.softmax(self.conv_attn(x), axis=(1, 2))
        context = jnp.einsum("bhwc,bhw->bc", x, weights[..., 0])
        return x * jax.nn.sigmoid(self.mlp_scale(context[:, None, None]))


class _ContextMlp(nnx.Module):
    def __init__(self, features: int, hidden: int, *, activation: Any, conv: Any, **common: Any):
        self.fc1 = conv(features, hidden, 1, use_bias=True)
        self.norm = LayerNorm(hidden, **common)
        self.fc2 = conv(hidden, features, 1, use_bias=True)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.activation(self.norm(self.fc1(x))))
