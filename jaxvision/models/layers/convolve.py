"""Convolution of arrays [b, h, w, c], computed in the way that is fastest on each platform.

The result is that of `jax.lax.conv_general_dilated`. XLA's CPU backend has fast kernels for plain convolutions only, so
on CPU the others are expressed by operations that are fast there:

- Depthwise: shifted multiply-adds, 15 to 22 times faster (https://github.com/jax-ml/jax/issues/23713), and a loop over
  blocks of rows for the gradient of the kernel.
- Grouped (ResNeXt): dense convolutions over slices of the channels. Gradients are hundreds of times faster.
- An output smaller than the kernel, as in the last stages at CIFAR's size: one matrix product, 25 to 80 times faster.
  The same for any small output whose patches fit into the cache: 25 % faster.
- An output of 14 rows or more: a loop over images for the gradient of the kernel, 1.2 to 5 times faster. See `_large`
  for JAX 0.10.

The choice is made when the program is lowered, so an exported program suits every platform; within
`platform.compiled_for` it is made when the program is traced.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxvision.models.layers.materialize import materialize
from jaxvision.platform import batch_parts, by_platform

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
        # A product over channels, which XLA computes faster on CPU. There, the gradient of the kernel takes up to seven
        # times as long if batch, height and width stay separate axes. The checkpoint keeps x for it, which the other
        # platforms' product keeps too, instead of the reshaped x.
        return by_platform(
            x[:, ::stride, ::stride],
            kernel[0, 0],
            cpu=jax.checkpoint(lambda x, w: (x.reshape(-1, c) @ w).reshape(*x.shape[:-1], d), prevent_cse=False),
            default=functools.partial(jnp.einsum, "bhwc,cd->bhwd"),
        )
    if groups == c == d and dilation == 1:
        return _depthwise(x, kernel, stride, padding)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    if groups > 1:
        on_cpu = functools.partial(_sliced, **options, groups=groups)
    elif _is_tiny(x, kernel, **options):
        on_cpu = functools.partial(_patch_product, stride=stride, padding=padding)
    elif dilation == 1 and _output_size(x, kernel, stride, padding)[0] >= 14:
        return _large(x, kernel, stride, padding)
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _large(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Returns a dense convolution of a large image."""
    (top, bottom), sides = padding

    # XLA's CPU backend has two kernels. For few channels JAX 0.10 selects the one that is half as fast, unless the
    # output is higher than the input, so an extra row is computed. In JAX 0.12 both are equally fast.
    def one_row_more(x, kernel):
        return _convolution(x, kernel, 1, ((top + 1, bottom), sides))[:, 1:]

    return by_platform(
        x,
        kernel,
        cpu=one_row_more if stride == 1 else None,
        default=lambda x, kernel: _convolution(x, kernel, stride, padding),
    )


@functools.partial(_large.defjvp, symbolic_zeros=True)
def _large_jvp(stride, padding, primals, tangents):
    # A convolution is linear in each argument. Only the gradient of the kernel is slow in XLA.
    (x, kernel), (dx, dkernel) = primals, tangents
    zero = jax.custom_derivatives.SymbolicZero
    dy = [] if isinstance(dx, zero) else [_convolution(dx, kernel, stride, padding)]
    dy += [] if isinstance(dkernel, zero) else [_along_dense_kernel(x, dkernel, stride, padding)]
    return _large(x, kernel, stride, padding), sum(dy)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))
def _along_dense_kernel(x, dkernel, stride, padding):
    """Returns the dense convolution with `dkernel`; its transpose is the gradient of the kernel."""
    patches = math.prod(_output_size(x, dkernel, stride, padding)) * math.prod(dkernel.shape[:3])

    def by_image(x, dkernel):
        return _image_by_image(_pad(x, padding), dkernel, stride)

    return by_platform(
        x,
        dkernel,
        cpu=by_image if patches <= 2**25 else None,  # numbers of one image; 128 MiB
        default=lambda x, dkernel: _convolution(x, dkernel, stride, padding),
    )


def _image_by_image(x, kernel, stride):
    """Returns the convolution of a padded `x`, as a loop over images.

    Its transpose is a loop that adds the product of an image's patches and gradients. XLA's CPU backend has a
    convolution instead, whose window is as large as the image.
    """
    shares, (k, _, c, d) = _in_shares(x), kernel.shape
    s, exact = shares.shape[1], jnp.promote_types(x.dtype, jnp.float32)
    # Each share adds up its own gradient, in this layout. Taps and channels stay separate axes, so that the channels
    # can be sharded.
    kernels = jnp.broadcast_to(kernel.astype(exact).reshape(k * k, c, d).transpose(2, 0, 1), (s, d, k * k, c))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def convolve_images(_, images):
        patches = jnp.stack([pixels for _, pixels in shifts(images, k, stride)], axis=-2)
        h, w = patches.shape[1:3]
        y = jnp.einsum("snpc,sdpc->snd", patches.reshape(s, h * w, k * k, c).astype(exact), kernels)
        return None, y.reshape(s, h, w, d).astype(x.dtype)

    return _joined(lax.scan(convolve_images, None, shares)[1])


def _in_shares(x):
    """Returns `x` [b, ...] as [b / s, s, ...], for a loop over b / s steps.

    If the batch is sharded, share i holds images of one device, and no image moves between devices.
    """
    s = 1 if batch_parts() == 1 else math.gcd(batch_parts(), x.shape[0])
    return x.reshape(s, x.shape[0] // s, *x.shape[1:]).swapaxes(0, 1)


def _joined(x):
    # the inverse of _in_shares
    return x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _is_tiny(x, kernel, stride, padding, dilation):
    b, (k, _, c, _) = x.shape[0], kernel.shape
    outs = _output_size(x, kernel, stride, padding)
    # The size of a batch is not a number in a program that is exported for any size.
    patches_fit = isinstance(b, int) and max(outs) <= 7 and b * math.prod(outs) * k * k * c <= 2**21  # 8 MiB
    return dilation == 1 and (min(outs) < k or patches_fit)


def _output_size(x, kernel, stride, padding):
    k = kernel.shape[0]
    return [(n + sum(pads) - k) // stride + 1 for n, pads in zip(x.shape[1:3], padding, strict=True)]


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
    """Returns the depthwise convolution of `dx`, of the shape `shape`; its transpose is the gradient of the input."""

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
    """Returns the depthwise convolution with `dkernel`, of the shape `shape`; its transpose gives kernel gradients."""
    return by_platform(
        x,
        dkernel,
        cpu=lambda x, dkernel: _block_by_block(_pad(x, padding), dkernel, shape, stride),
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


def _block_by_block(x, kernel, shape, stride):
    """Returns the depthwise convolution of a padded `x`, of the shape `shape`, as a loop over blocks of rows.

    Its transpose is a loop that adds the products of a block to the gradient of each tap. The pixels of a block, at
    most eight rows of an image, are in the cache. The sums keep an axis for columns, so that channels stay innermost
    and each block updates the sums once. Slices whose start is not constant are materialized, because a loop that
    reads through them is not vectorized.
    """
    (_, h, w, c), k = shape, kernel.shape[0]
    if 0 in shape:
        return jnp.zeros(shape, x.dtype)
    exact = jnp.promote_types(x.dtype, jnp.float32)
    most = min(8, max(1, 128 // k**2))  # the time to compile grows with rows * k * k
    blocks = -(-h // min(max(2**14 // (w * c), 4), most))  # of an image
    rows = -(-h // blocks)
    missing = (blocks * rows - 1) * stride + k - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, max(missing, 0)), (0, 0), (0, 0)))  # the last block is complete
    shares = _in_shares(x)
    steps, s = shares.shape[:2]
    # One copy of each tap for each share and column.
    taps = [jnp.broadcast_to(tap, (s, w, c)) for tap in lax.split(kernel.astype(exact).reshape(-1, c), (1,) * k**2)]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def convolve_block(_, n):
        start = (n // blocks, 0, n % blocks * rows * stride, 0, 0)
        size = (1, s, (rows - 1) * stride + k, *shares.shape[3:])
        block = materialize(lax.dynamic_slice(shares, start, size)[0])

        def convolve_row(row):
            line = block[:, row * stride : row * stride + k].astype(exact)
            pixels = (line[:, i, j : j + (w - 1) * stride + 1 : stride] for i in range(k) for j in range(k))
            return functools.reduce(jnp.add, map(jnp.multiply, pixels, taps))

        return None, materialize(jnp.stack([convolve_row(row) for row in range(rows)], axis=1))

    y = lax.scan(convolve_block, None, jnp.arange(steps * blocks))[1]  # [steps * blocks, s, rows, w, c]
    y = y.reshape(steps, blocks, s, rows, w, c).swapaxes(1, 2).reshape(steps, s, blocks * rows, w, c)
    return _joined(y)[:, :h].astype(x.dtype)
