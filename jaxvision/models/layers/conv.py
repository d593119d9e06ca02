"""Convolutions over [b, h, w, c] images, with PyTorch's or TensorFlow's padding.

What a convolution computes is `jax.lax.conv_general_dilated`. How it is computed depends on the platform, because XLA's
CPU backend has good kernels for plain convolutions only. The others are written in terms of what it is good at:

- depthwise: shifted multiply-adds, 15 to 22 times faster (https://github.com/jax-ml/jax/issues/23713);
- grouped (ResNeXt): dense convolutions over slices of the channels; gradients are hundreds of times faster;
- an image no larger than the kernel (the last stages, at CIFAR's size): one matrix product, 25 to 80 times faster; a
  quarter faster for any small image whose patches fit into the cache (the last stage, few images at once);
- a wide image, in jax 0.10: see `_wide`; 7 % of a ResNet-50.

The choice is made when XLA is handed the program, not when it is traced, so one exported program is right for every
platform.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from jaxvision.models.layers.init import torch_default, zeros
from jaxvision.platform import by_platform

Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)


class Conv(nnx.Module):
    """Two-dimensional convolution with a square kernel.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: k of the k x k kernel.
      stride: in both directions.
      padding: ``"torch"`` pads all four sides by ``((stride - 1) + dilation * (k - 1)) // 2``; ``"same"`` pads as
        TensorFlow does, the odd pixel at the bottom and right.
      dilation: distance between the taps of the kernel.
      groups: 1 is a dense convolution, `in_features` a depthwise one.
      use_bias: add a bias of [out_features].
      dtype: of the computation; None takes the promoted type of input and kernel.
      param_dtype: of kernel and bias.
      kernel_init: PyTorch's default; the families pass their own.
      bias_init: zeros.
      rngs: the stream ``params``.

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
            raise ValueError(f"groups {groups} divides not both {in_features} and {out_features} channels")
        if padding not in ("torch", "same"):
            raise ValueError(f"padding {padding!r} is neither 'torch' nor 'same'")
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
        """Returns what the image is convolved with, [k, k, in_features / groups, out_features]."""
        return self.kernel[...]


class StdConv(Conv):
    """A convolution whose kernel has mean 0 and variance 1 for each of its outputs, at every call anew.

    Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
    https://arxiv.org/abs/1903.10520.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: k of the k x k kernel.
      epsilon: added to the variance; 1e-8 in BiT and in the hybrids of ResNet and ViT.
      **options: those of `Conv`.

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


def padding_of(kind: str, size: tuple[int, ...], kernel_size: int, stride: int, dilation: int = 1) -> Padding:
    """Returns the padding of an image of `size` (h, w) by the rule ``"torch"`` or ``"same"``; see `Conv`.

    >>> padding_of("torch", (224, 224), 7, 2), padding_of("same", (224, 224), 7, 2)
    (((3, 3), (3, 3)), ((2, 3), (2, 3)))
    """
    if kind == "same":
        return same_padding(size, kernel_size, stride, dilation)
    p = ((stride - 1) + dilation * (kernel_size - 1)) // 2
    return (p, p), (p, p)


def same_padding(size: tuple[int, ...], kernel_size: int, stride: int, dilation: int = 1) -> Padding:
    """Returns TensorFlow's padding of an image of `size` (h, w): just enough for ``ceil(size / stride)`` outputs.

    >>> same_padding((224, 15), 7, 2)
    ((2, 3), (3, 3))
    """
    pads = []
    for n in size:
        total = max((-(-n // stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return pads[0], pads[1]


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: Padding, dilation: int = 1, groups: int = 1
) -> jax.Array:
    """Returns the convolution of `x` [b, h, w, c] with `kernel` [k, k, c / groups, d], [b, h', w', d].

    The numbers are those of `jax.lax.conv_general_dilated` on every platform, to rounding.
    """
    c, k, d = x.shape[-1], kernel.shape[0], kernel.shape[-1]
    if k == 1 and groups == 1 and padding == ((0, 0), (0, 0)):
        # A 1x1 convolution is a matrix product over channels, and XLA's CPU backend is faster at the latter.
        return jnp.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], kernel[0, 0])
    if groups == c == d and dilation == 1:
        return _depthwise(x, kernel, stride, padding)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    if groups > 1:
        here = functools.partial(_sliced, **options, groups=groups)
    elif _is_tiny(x, kernel, **options):
        here = functools.partial(_patch_product, stride=stride, padding=padding)
    elif stride == dilation == 1 and x.shape[1] >= 14:
        return _wide(x, kernel, padding)
    else:
        return _convolution(x, kernel, **options)
    return by_platform(x, kernel, cpu=here, default=functools.partial(_convolution, **options, groups=groups))


def shifts(x: jax.Array, k: int, stride: int) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields each tap (i, j) of a k x k window, and what it sees of a padded image as the window moves by `stride`.

    >>> image = jnp.arange(16).reshape(1, 4, 4, 1)
    >>> [(tap, seen[0, :, :, 0].tolist()) for tap, seen in shifts(image, 2, 2)][:2]
    [((0, 0), [[0, 2], [8, 10]]), ((0, 1), [[1, 3], [9, 11]])]
    """
    b, h, w, c = x.shape
    rows, columns = (h - k) // stride + 1, (w - k) // stride + 1
    for i, j in itertools.product(range(k), repeat=2):
        last = (b, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, c)
        yield (i, j), lax.slice(x, (0, i, j, 0), last, (1, stride, stride, 1))


def _convolution(x, kernel, stride, padding, dilation=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _wide(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """A dense convolution of stride 1 over a wide image."""
    (top, bottom), sides = padding

    # XLA's CPU backend has two kernels, and in jax 0.10 takes the one that is half as fast for few channels, unless the
    # output is higher than the input. So it is asked for one row more. Equal in jax 0.12.
    def one_row_more(x, kernel):
        return _convolution(x, kernel, 1, ((top + 1, bottom), sides))[:, 1:]

    return by_platform(x, kernel, cpu=one_row_more, default=lambda x, kernel: _convolution(x, kernel, 1, padding))


@functools.partial(_wide.defjvp, symbolic_zeros=True)
def _wide_jvp(padding, primals, tangents):
    # A convolution is linear in either argument, and XLA has good gradients for the plain one only.
    (x, kernel), (dx, dkernel) = primals, tangents
    zero = jax.custom_derivatives.SymbolicZero
    dy = [] if isinstance(dx, zero) else [_convolution(dx, kernel, 1, padding)]
    dy += [] if isinstance(dkernel, zero) else [_convolution(x, dkernel, 1, padding)]
    return _wide(x, kernel, padding), sum(dy)


def _is_tiny(x, kernel, stride, padding, dilation):
    (b, *image, _), (k, _, c, _) = x.shape, kernel.shape
    outs = [(n + sum(pads) - k) // stride + 1 for n, pads in zip(image, padding, strict=True)]
    patches_fit = max(outs) <= 7 and b * math.prod(outs) * k * k * c <= 2**21  # 8 MiB
    return dilation == 1 and (min(outs) < k or patches_fit)


def _patch_product(x, kernel, stride, padding):
    """A convolution as one matrix product of patches and kernels."""
    k, _, c, d = kernel.shape
    # Taps and channels are two axes, of which devices may share the channels.
    patches = jnp.stack([seen for _, seen in shifts(_pad(x, padding), k, stride)], axis=-2)
    return jnp.einsum("bhwpc,pcd->bhwd", patches, kernel.reshape(k * k, c, d))


def _sliced(x, kernel, stride, padding, dilation, groups):
    """A grouped convolution as dense ones over slices of the channels, with zeros between the groups of a slice."""
    c, (k, _, inner, d) = x.shape[-1], kernel.shape
    # Wide slices multiply more zeros, many slices compile longer: 32 channels each, but no more than 16 slices.
    slices = next(n for n in range(min(groups, max(1, c // 32), 16), 0, -1) if groups % n == 0)
    m = groups // slices  # groups in a slice
    zeros_between = jnp.eye(m, dtype=kernel.dtype)
    dense = jnp.einsum("yxisgo,gh->syxhigo", kernel.reshape(k, k, inner, slices, m, d // groups), zeros_between)
    dense = dense.reshape(slices, k, k, m * inner, d // slices)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    parts = zip(jnp.split(x, slices, axis=-1), dense, strict=True)
    # XLA takes half a minute to compile the 25 patches of 16 slices.
    convolved = convolve if k <= 3 else _convolution
    return jnp.concatenate([convolved(part, kernel, **options) for part, kernel in parts], axis=-1)


# --- depthwise: the derivative is written out, too, so that each direction chooses its lowering ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Returns the depthwise convolution of `x` [b, h, w, c] with `kernel` [k, k, 1, c]."""
    # The barrier makes XLA write the padded image once, in the loop that also normalizes and activates it. Without it
    # XLA sees that the central tap needs no padding, and computes the activation a second time to say so.
    return by_platform(
        x,
        kernel,
        cpu=lambda x, kernel: _shifted_sum(lax.optimization_barrier(_pad(x, padding)), kernel, stride),
        default=lambda x, kernel: _convolution(x, kernel, stride, padding, groups=x.shape[-1]),
    )


def _depthwise_forward(x, kernel, stride, padding):
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride, padding, residuals, dy):
    def by_autodiff(x, kernel, dy):
        return jax.vjp(lambda x, k: _convolution(x, k, stride, padding, groups=x.shape[-1]), x, kernel)[1](dy)

    def by_shifts(x, kernel, dy):
        return _shifted_input_gradient(x, kernel, dy, stride, padding), _shifted_kernel_gradient(
            _pad(x, padding), kernel, dy, stride
        )

    return by_platform(*residuals, dy, cpu=by_shifts, default=by_autodiff)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _shifted_sum(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Returns the sum over the k * k taps of `x`, shifted and strided, times the tap: one fused, vectorized loop."""
    exact = jnp.promote_types(x.dtype, jnp.float32)  # XLA sums the products of bfloat16 in float32, too
    y = jnp.zeros((), exact)
    for (i, j), seen in shifts(x, kernel.shape[0], stride):
        y = y + seen.astype(exact) * kernel[i, j].reshape(1, 1, 1, -1).astype(exact)
    return y.astype(x.dtype)


def _shifted_input_gradient(x, kernel, dy, stride, padding):
    # The transpose of a strided correlation: spread dy out by the stride, correlate with the flipped kernel.
    k = kernel.shape[0]
    config = [(0, 0, 0)]
    for n, m, (low, high) in zip(x.shape[1:3], dy.shape[1:3], padding, strict=True):
        unused = n + low + high - ((m - 1) * stride + k)  # rows at the end that no window reaches
        config.append((k - 1 - low, k - 1 - high + unused, stride - 1))
    spread = lax.pad(dy, jnp.zeros((), dy.dtype), (*config, (0, 0, 0)))
    return _shifted_sum(spread, kernel[::-1, ::-1], 1)


def _shifted_kernel_gradient(x, kernel, dy, stride):
    # One tap at a time: k * k products of the size of dy, alive at once, would cost more to allocate than to compute.
    b, h, w, c = dy.shape
    k = kernel.shape[0]
    exact = jnp.promote_types(dy.dtype, jnp.float32)

    def tap(n):
        window = (b, (h - 1) * stride + 1, (w - 1) * stride + 1, c)
        shifted = lax.dynamic_slice(x, (0, n // k, n % k, 0), window)[:, ::stride, ::stride]
        return jnp.sum(shifted.astype(exact) * dy.astype(exact), axis=(1, 2))

    per_image = lax.map(tap, jnp.arange(k * k))  # [k * k, b, c]; images last, so that devices that share them meet once
    return per_image.sum(axis=1).reshape(kernel.shape).astype(kernel.dtype)
