"""Convolution of arrays [b, h, w, c], computed in the way that is fastest on each platform.

The result is that of `jax.lax.conv_general_dilated`. XLA's CPU backend has fast kernels for plain convolutions only, so
on CPU the others are expressed by operations that are fast there:

- Depthwise: shifted multiply-adds, 15 to 22 times faster (https://github.com/jax-ml/jax/issues/23713).
- Grouped (ResNeXt): dense convolutions over slices of the channels. Gradients are hundreds of times faster.
- An image no larger than the kernel, as in the last stages at CIFAR's size: one matrix product, 25 to 80 times faster.
  The same for any small image whose patches fit into the cache: 25 % faster.
- A wide image, in JAX 0.10: see `_wide`. It saves 7 % of a ResNet-50.

The choice is made when the program is lowered, not when it is traced, so an exported program suits every platform.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxvision.platform import by_platform

Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)


def padding_of(kind: str, size: tuple[int, ...], kernel_size: int, stride: int, dilation: int = 1) -> Padding:
    """Returns the padding of an image.

    Args:
      kind: ``"torch"`` or ``"same"``, as for `Conv`.
      size: (height, width) of the image.
      kernel_size: side k of the k x k kernel.
      stride: stride in both directions.
      dilation: distance between the kernel's taps.

    >>> padding_of("torch", (224, 224), 7, 2), padding_of("same", (224, 224), 7, 2)
    (((3, 3), (3, 3)), ((2, 3), (2, 3)))
    """
    if kind == "same":
        return same_padding(size, kernel_size, stride, dilation)
    p = ((stride - 1) + dilation * (kernel_size - 1)) // 2
    return (p, p), (p, p)


def same_padding(size: tuple[int, ...], kernel_size: int, stride: int, dilation: int = 1) -> Padding:
    """Returns TensorFlow's padding of an image of `size` (h, w): the output has ``ceil(size / stride)`` pixels.

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
    """Returns a convolution, equal to `jax.lax.conv_general_dilated` up to rounding on every platform.

    Args:
      x: [b, h, w, c].
      kernel: [k, k, c / groups, d].
      stride: stride in both directions.
      padding: pixels of zeros (top, bottom), (left, right).
      dilation: distance between the kernel's taps.
      groups: 1 for a dense convolution, c for a depthwise one.

    Returns:
      [b, h', w', d].
    """
    c, k, d = x.shape[-1], kernel.shape[0], kernel.shape[-1]
    if k == 1 and groups == 1 and padding == ((0, 0), (0, 0)):
        # On CPU, XLA computes the equivalent matrix product over channels faster.
        return jnp.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], kernel[0, 0])
    if groups == c == d and dilation == 1:
        return _depthwise(x, kernel, stride, padding)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    if groups > 1:
        on_cpu = functools.partial(_sliced, **options, groups=groups)
    elif _is_tiny(x, kernel, **options):
        on_cpu = functools.partial(_patch_product, stride=stride, padding=padding)
    elif stride == dilation == 1 and x.shape[1] >= 14:
        return _wide(x, kernel, padding)
    else:
        return _convolution(x, kernel, **options)
    return by_platform(x, kernel, cpu=on_cpu, default=functools.partial(_convolution, **options, groups=groups))


def shifts(x: jax.Array, k: int, stride: int) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields, for each tap of a k x k window, the pixels under it as the window moves over a padded image.

    Args:
      x: [b, h, w, c], already padded.
      k: side of the window.
      stride: step of the window.

    Yields:
      The tap (i, j), and its pixels [b, h', w', c].

    >>> image = jnp.arange(16).reshape(1, 4, 4, 1)
    >>> [(tap, pixels[0, :, :, 0].tolist()) for tap, pixels in shifts(image, 2, 2)][:2]
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
    """Returns a dense convolution of stride 1 over a wide image."""
    (top, bottom), sides = padding

    # XLA's CPU backend has two kernels. For few channels JAX 0.10 selects the one that is half as fast, unless the
    # output is higher than the input, so an extra row is computed. In JAX 0.12 both are equally fast.
    def one_row_more(x, kernel):
        return _convolution(x, kernel, 1, ((top + 1, bottom), sides))[:, 1:]

    return by_platform(x, kernel, cpu=one_row_more, default=lambda x, kernel: _convolution(x, kernel, 1, padding))


@functools.partial(_wide.defjvp, symbolic_zeros=True)
def _wide_jvp(padding, primals, tangents):
    # A convolution is linear in each argument. XLA has fast gradients for the plain convolution only.
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
    """Returns a convolution, computed as one matrix product of patches and kernels."""
    k, _, c, d = kernel.shape
    # Taps and channels stay separate axes, so that the channels can be sharded.
    patches = jnp.stack([pixels for _, pixels in shifts(_pad(x, padding), k, stride)], axis=-2)
    return jnp.einsum("bhwpc,pcd->bhwd", patches, kernel.reshape(k * k, c, d))


def _sliced(x, kernel, stride, padding, dilation, groups):
    """Returns a grouped convolution, computed as dense ones over slices of the channels.

    A slice holds several groups. Its kernel is zero between different groups.
    """
    c, (k, _, inner, d) = x.shape[-1], kernel.shape
    # Wide slices multiply more zeros and many slices take longer to compile: 32 channels each, at most 16 slices.
    slices = next(n for n in range(min(groups, max(1, c // 32), 16), 0, -1) if groups % n == 0)
    m = groups // slices  # groups in a slice
    zeros_between = jnp.eye(m, dtype=kernel.dtype)
    dense = jnp.einsum("yxisgo,gh->syxhigo", kernel.reshape(k, k, inner, slices, m, d // groups), zeros_between)
    dense = dense.reshape(slices, k, k, m * inner, d // slices)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    parts = zip(jnp.split(x, slices, axis=-1), dense, strict=True)
    # XLA would take half a minute to compile 16 slices of 25 patches each.
    convolved = convolve if k <= 3 else _convolution
    return jnp.concatenate([convolved(part, kernel, **options) for part, kernel in parts], axis=-1)


# --- Depthwise convolution. The derivative is written out, so that each direction has a lowering of its own. ---


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Returns the depthwise convolution of `x` [b, h, w, c] with `kernel` [k, k, 1, c]."""
    # The barrier makes XLA write the padded image once, in the loop that also normalizes and activates it. Without it
    # XLA notices that the central tap needs no padding and computes the activation a second time for it.
    return by_platform(
        x,
        kernel,
        cpu=lambda x, kernel: _shifted_sum(lax.optimization_barrier(_pad(x, padding)), kernel, stride),
        default=lambda x, kernel: _convolution(x, kernel, stride, padding, groups=x.shape[-1]),
    )


@functools.partial(_depthwise.defjvp, symbolic_zeros=True)
def _depthwise_jvp(stride, padding, primals, tangents):
    # Reverse mode transposes these terms, each of which is linear in its tangent. On CPU they are written as transposes
    # of the gradients that are fast there, so that transposing them yields those gradients.
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _depthwise(x, kernel, stride, padding)
    zero = jax.custom_derivatives.SymbolicZero
    dy = [] if isinstance(dx, zero) else [_along_input(kernel, dx, y.shape, stride, padding)]
    dy += [] if isinstance(dkernel, zero) else [_along_kernel(x, dkernel, y.shape, stride, padding)]
    return y, sum(dy)


# The checkpoints keep x and the kernel for the backward pass, instead of what is computed from them alone.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3, 4))
def _along_input(kernel, dx, shape, stride, padding):
    """Returns the depthwise convolution of `dx`, of a shape; its transpose is the gradient of the input."""

    def on_cpu(kernel, dx):
        def gradient(dy):
            return _shifted_input_gradient(dx.shape, kernel, dy, stride, padding)

        return jax.linear_transpose(gradient, jax.ShapeDtypeStruct(shape, dx.dtype))(dx)[0]

    return by_platform(
        kernel,
        dx,
        cpu=on_cpu,
        default=lambda kernel, dx: _convolution(dx, kernel, stride, padding, groups=dx.shape[-1]),
    )


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3, 4))
def _along_kernel(x, dkernel, shape, stride, padding):
    """Returns the depthwise convolution with `dkernel`, of a shape; its transpose is the gradient of the kernel."""
    return by_platform(
        x,
        dkernel,
        cpu=lambda x, dkernel: _tap_by_tap(_pad(x, padding), dkernel, shape, stride),
        default=lambda x, dkernel: _convolution(x, dkernel, stride, padding, groups=x.shape[-1]),
    )


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _shifted_sum(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Returns the sum over the k * k taps of the shifted, strided `x` times the tap: one fused, vectorized loop."""
    exact = jnp.promote_types(x.dtype, jnp.float32)  # XLA also sums products of bfloat16 in float32
    y = jnp.zeros((), exact)
    for (i, j), pixels in shifts(x, kernel.shape[0], stride):
        y = y + pixels.astype(exact) * kernel[i, j].reshape(1, 1, 1, -1).astype(exact)
    return y.astype(x.dtype)


def _shifted_input_gradient(shape, kernel, dy, stride, padding):
    # The transpose of a strided correlation: spread dy by the stride, correlate with the flipped kernel.
    k = kernel.shape[0]
    config = [(0, 0, 0)]
    for n, m, (low, high) in zip(shape[1:3], dy.shape[1:3], padding, strict=True):
        unused = n + low + high - ((m - 1) * stride + k)  # rows at the end that no window reaches
        config.append((k - 1 - low, k - 1 - high + unused, stride - 1))
    spread = lax.pad(dy, jnp.zeros((), dy.dtype), (*config, (0, 0, 0)))
    return _shifted_sum(spread, kernel[::-1, ::-1], 1)


def _tap_by_tap(x, kernel, shape, stride):
    """Returns the depthwise convolution of a padded `x`, of a shape, as a loop over the taps.

    Its transpose is a loop that computes the gradient of one tap at a time: allocating k * k products of the size of
    the result would take longer than computing them.
    """
    (b, h, w, c), k = shape, kernel.shape[0]
    exact = jnp.promote_types(x.dtype, jnp.float32)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add_tap(y, each):
        n, tap = each
        window = (b, (h - 1) * stride + 1, (w - 1) * stride + 1, c)
        shifted = lax.dynamic_slice(x, (0, n // k, n % k, 0), window)[:, ::stride, ::stride]
        return y + shifted.astype(exact) * tap, None

    # One copy of the kernel per image, so that the transpose sums over images last and devices that shard the batch
    # communicate once.
    taps = jnp.broadcast_to(kernel.astype(exact).reshape(k * k, 1, 1, 1, c), (k * k, b, 1, 1, c))
    return lax.scan(add_tap, jnp.zeros(shape, exact), (jnp.arange(k * k), taps))[0].astype(x.dtype)
