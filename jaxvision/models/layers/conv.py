"""Convolution layers over images [b, h, w, c], with PyTorch's or TensorFlow's padding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxvision.models.layers import dtypes
from jaxvision.models.layers.convolve import convolve, padding_of
from jaxvision.models.layers.init import torch_default, zeros


class Conv(nnx.Module):
    """Two-dimensional convolution with a square kernel.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: side k of the k x k kernel.
      stride: stride in both directions.
      padding: ``"torch"`` pads each side by ``((stride - 1) + dilation * (k - 1)) // 2``. ``"same"`` pads like
        TensorFlow, with the odd pixel at the bottom and right.
      dilation: distance between the kernel's taps, in pixels.
      groups: 1 for a dense convolution, `in_features` for a depthwise one.
      use_bias: whether to add a bias [out_features].
      dtype: dtype of the computation; None for the promoted dtype of input and kernel.
      param_dtype: dtype of kernel and bias.
      kernel_init: initializer of the kernel. Default: PyTorch's.
      bias_init: initializer of the bias.
      rngs: stream ``params``.

    Example:
      >>> conv = Conv(3, 8, 3, stride=2, rngs=nnx.Rngs(0))
      >>> conv(jnp.zeros((1, 15, 15, 3))).shape
      (1, 8, 8, 8)
      >>> conv.kernel.shape     # [k, k, in_features / groups, out_features]
      (3, 3, 3, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: str = "torch",
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = torch_default,
        bias_init: Any = zeros,
        rngs: nnx.Rngs,
    ):
        if in_features % groups or out_features % groups:
            raise ValueError(f"groups: got {groups}, expected a divisor of {in_features} and {out_features} channels.")
        if padding not in ("torch", "same"):
            raise ValueError(f"padding: got {padding!r}, expected 'torch' or 'same'.")
        shape = (kernel_size, kernel_size, in_features // groups, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype)) if use_bias else nnx.data(None)
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the convolved images [b, h', w', out_features] of `x` [b, h, w, in_features]."""
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = dtypes.promote_dtype((x, self._taps(), bias), dtype=self.dtype)
        padding = padding_of(self.padding, x.shape[1:3], kernel.shape[0], self.stride, self.dilation)
        y = convolve(x, kernel, stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)

    def _taps(self) -> jax.Array:
        """Returns the array that images are convolved with, [k, k, in_features / groups, out_features]."""
        return self.kernel[...]


class StdConv(Conv):
    """Convolution with weight standardization: each call scales the kernel to mean 0 and variance 1 per output channel.

    Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
    https://arxiv.org/abs/1903.10520.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: side k of the k x k kernel.
      epsilon: added to the variance. BiT and the hybrid ViTs use 1e-8.
      **options: other arguments of `Conv`.

    Example:
      >>> conv = StdConv(3, 8, 3, padding="same", rngs=nnx.Rngs(0))
      >>> conv(jnp.zeros((1, 15, 15, 3))).shape
      (1, 15, 15, 8)
    """

    def __init__(self, in_features: int, out_features: int, kernel_size: int, *, epsilon: float = 1e-8, **options: Any):
        super().__init__(in_features, out_features, kernel_size, **options)
        self.epsilon = epsilon

    def _taps(self) -> jax.Array:
        kernel = self.kernel[...]
        kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        taps = (0, 1, 2)
        centered = kernel - kernel.mean(axis=taps, keepdims=True)
        variance = (centered**2).mean(axis=taps, keepdims=True)
        return (centered * lax.rsqrt(variance + self.epsilon)).astype(self.kernel.dtype)
