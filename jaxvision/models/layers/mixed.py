"""Convolutions with kernels of several sizes (MixConv) or with several experts (CondConv)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers import dtypes
from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.convolve import convolve, padding_of
from jaxvision.models.layers.init import uniform


class MixConv(nnx.List):
    """Convolutions with different kernel sizes, each over a part of the channels.

    Tan and Le, "MixConv: Mixed Depthwise Convolutional Kernels", https://arxiv.org/abs/1907.09595.

    Args:
      in_features: channels of the input. They are divided equally; the first convolution also takes the remainder.
      out_features: channels of the output, divided in the same way.
      kernel_sizes: k of each convolution's k x k kernel.
      groups: 1, or `in_features` for depthwise convolutions.
      conv: function ``(in_features, out_features, kernel_size, groups=..., **options)`` that returns a convolution.
      **options: passed to `conv`, such as ``stride``.

    Example:
      >>> import functools
      >>> mix = MixConv(10, 10, (3, 5, 7), groups=10, conv=functools.partial(Conv, rngs=nnx.Rngs(0)))
      >>> mix(jnp.zeros((1, 15, 15, 10))).shape, [conv.kernel.shape for conv in mix]
      ((1, 15, 15, 10), [(3, 3, 1, 4), (5, 5, 1, 3), (7, 7, 1, 3)])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_sizes: Sequence[int],
        *,
        groups: int = 1,
        conv: Callable[..., Conv],
        **options: Any,
    ):
        if groups not in (1, in_features):
            raise ValueError(f"groups: got {groups}, expected 1 or all {in_features} channels.")
        ins, outs = (_split(features, len(kernel_sizes)) for features in (in_features, out_features))
        super().__init__(
            [
                conv(c, d, k, groups=1 if groups == 1 else c, **options)
                for c, d, k in zip(ins, outs, kernel_sizes, strict=True)
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the convolved images [b, h', w', out_features] of `x` [b, h, w, in_features]."""
        ends = itertools.accumulate(_split(x.shape[-1], len(self)))
        parts = jnp.split(x, list(ends)[:-1], axis=-1)
        return jnp.concatenate([conv(part) for conv, part in zip(self, parts, strict=True)], axis=-1)


def _split(features: int, n: int) -> list[int]:
    """Returns the sizes of `n` equal parts of `features`; the first also gets the remainder."""
    return [features // n + features % n, *[features // n] * (n - 1)]


class CondConv(nnx.Module):
    """A convolution whose kernel is, for each image, a weighted sum of the kernels of several experts.

    Yang et al., "CondConv: Conditionally Parameterized Convolutions for Efficient Inference",
    https://arxiv.org/abs/1904.04971.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: side k of the k x k kernel.
      experts: number of kernels. Each is a row of ``weight``, in timm's order [out, in / groups, k, k].
      stride: stride in both directions.
      padding: ``"torch"`` or ``"same"``, as for `Conv`.
      groups: 1 for a dense convolution, `in_features` for a depthwise one.
      dtype: dtype of the computation; None for the promoted dtype of input and weight.
      param_dtype: dtype of the weight.
      weight_init: initializer of ``weight``. Default: PyTorch's for each kernel, U(+-1/sqrt(k * k * in / groups)).
      rngs: stream ``params``.

    Example:
      >>> conv = CondConv(8, 16, 3, experts=4, rngs=nnx.Rngs(0))
      >>> conv(jnp.zeros((2, 15, 15, 8)), jnp.ones((2, 4))).shape, conv.weight.shape
      ((2, 15, 15, 16), (4, 1152))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        experts: int,
        stride: int = 1,
        padding: str = "torch",
        groups: int = 1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        weight_init: Any = None,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_features // groups, out_features)
        init = uniform(math.prod(shape[:3]) ** -0.5) if weight_init is None else weight_init
        self.weight = nnx.Param(init(rngs.params(), (experts, math.prod(shape)), param_dtype))
        self.kernel_shape = shape
        self.stride, self.padding, self.groups, self.dtype = stride, padding, groups, dtype

    def __call__(self, x: jax.Array, routing: jax.Array) -> jax.Array:
        """Returns the convolved images [b, h', w', out_features].

        Args:
          x: [b, h, w, in_features].
          routing: routing weights [b, experts], the factors of the experts' kernels for each image.
        """
        x, weight, routing = dtypes.promote_dtype((x, self.weight[...], routing), dtype=self.dtype)
        k, _, c, d = self.kernel_shape
        kernels = (routing @ weight).reshape(-1, d, c, k, k).transpose(0, 3, 4, 2, 1)
        padding = padding_of(self.padding, x.shape[1:3], k, self.stride)

        def convolve_one(image: jax.Array, kernel: jax.Array) -> jax.Array:
            return convolve(image[None], kernel, stride=self.stride, padding=padding, groups=self.groups)[0]

        return jax.vmap(convolve_one)(x, kernels)
