"""Normalization layers, with PyTorch's arithmetic."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxvision.errors import UserError
from jaxvision.models.layers import dtypes
from jaxvision.models.layers.frozen import Frozen
from jaxvision.models.layers.init import ones, zeros
from jaxvision.models.layers.materialize import materialize
from jaxvision.platform import by_platform

Norm = Callable[..., nnx.Module]  # (features, dtype=, param_dtype=, rngs=) -> a normalization over the last axis


class BatchNorm(nnx.Module):
    """Batch normalization over all axes but the last.

    Under a sharded `jax.jit` the batch axis is the global batch, so statistics are synchronized over devices. The
    variance is computed in two passes, as in PyTorch, so that float32 results agree. Also as in PyTorch, and unlike in
    Flax, the running variance averages unbiased variances: a batch is normalized by the variance that divides by its
    number of values n, but the running variance gets the one that divides by n - 1.

    Args:
      features: channels c of the input [..., c].
      epsilon: added to the variance. Models ported from TensorFlow use 1e-3.
      momentum: weight of the old statistics, as in Flax: PyTorch's momentum of 0.1 is 0.9 here.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of scale and bias. Statistics are always float32.
      scale_init: initializer of the scale; zeros for the last norm of a residual branch.
      rngs: stream ``params``.

    Attributes:
      use_running_average: whether to normalize with the running statistics, as in evaluation. The default.
      group: number of images that are normalized together in training; None for the whole batch.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        scale_init: Any = ones,
        rngs: nnx.Rngs,
    ):
        # In training `nnx.BatchNorm` has the same arithmetic, but it takes twice as long to build.
        self.mean = nnx.BatchStat(zeros(None, (features,), jnp.float32))
        self.var = nnx.BatchStat(ones(None, (features,), jnp.float32))
        self.scale = nnx.Param(scale_init(rngs.params(), (features,), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype))
        self.epsilon, self.momentum, self.dtype = epsilon, momentum, dtype
        self.use_running_average = True
        self.group: int | None = None

    @property
    def frozen(self) -> bool:
        """Whether scale and bias are frozen. The layer then uses and keeps its running statistics in any mode."""
        # From the Variables, so that no switch of modes can change it, and so that every view agrees.
        return isinstance(self.scale, Frozen) and isinstance(self.bias, Frozen)

    def set_view(self, use_running_average: bool | None = None, batch_norm_group: int | None = None) -> None:
        """Sets the mode in a view made by `nnx.view`."""
        if batch_norm_group is not None:
            self.group = batch_norm_group
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalized `x`, in the same shape. In training it also updates the statistics.

        Raises:
          UserError: in training, each channel has a single value, which a normalization turns into zero.
        """
        shape = (1,) * (x.ndim - 1) + (-1,)
        x, *_ = dtypes.promote_dtype((x, self.scale[...], self.bias[...]), dtype=self.dtype)
        if not (self.use_running_average or self.frozen):
            input_shape = x.shape
            if self.group is not None:
                x, shape = _grouped(x, self.group), (1, *shape)
            axes = tuple(range(x.ndim - len(input_shape), x.ndim - 1))  # within a group, or all
            n = math.prod(x.shape[i] for i in axes)  # values per mean, on all devices
            if n == 1:
                raise UserError(
                    f"BatchNorm: got one value per channel, for the shape {input_shape}, expected more in training. "
                    f"Choose larger batches, batch norm groups or images, or freeze the layer."
                )
            # Float32 even for inputs in bfloat16, and for the scale and the bias of them.
            dtype = _statistics_dtype(x)
            gain, bias = (p[...].astype(dtype).reshape(shape) for p in (self.scale, self.bias))
            y, mean, var = _normalize(x.astype(dtype), gain, bias, axes, self.epsilon)
            for old, new in ((self.mean, mean), (self.var, var * (n / (n - 1)))):
                old[...] = self.momentum * old[...] + (1 - self.momentum) * new.reshape(-1, new.shape[-1]).mean(0)
            return y.astype(x.dtype).reshape(input_shape)
        # The statistics are constants here, so one multiply-add per element suffices, as in PyTorch. The factors are
        # computed in float32, which matters in bfloat16.
        scale = self.scale[...] * lax.rsqrt(self.var[...] + self.epsilon)
        bias = self.bias[...] - self.mean[...] * scale
        affine = (scale.astype(x.dtype), bias.astype(x.dtype))
        # The barrier keeps XLA's CPU backend from recomputing the square root for each element.
        scale, bias = by_platform(*affine, cpu=lambda *c: lax.optimization_barrier(c), default=lambda *c: c)
        return x * scale.reshape(shape) + bias.reshape(shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _normalize(x: jax.Array, gain: jax.Array, bias: jax.Array, axes: tuple[int, ...], epsilon: float) -> Any:
    """Returns `x`, standardized over `axes`, times gain plus bias, and the means and the variances."""
    mean = materialize(x.mean(axes, keepdims=True))
    var = materialize(lax.square(x - mean).mean(axes, keepdims=True))
    return (x - mean) * (lax.rsqrt(var + epsilon) * gain) + bias, mean, var


@_normalize.defjvp
def _normalize_jvp(axes, epsilon, primals, tangents):
    # In reverse mode these terms need two sums over the pixels, those that are the gradients of bias and gain. Autodiff
    # of the two-pass variance needs four.
    (x, gain, _), (dx, dgain, dbias) = primals, tangents
    y, mean, var = _normalize(*primals, axes, epsilon)
    inverse = lax.rsqrt(var + epsilon)
    standardized = (x - mean) * inverse
    dmean, covariance = dx.mean(axes, keepdims=True), (standardized * dx).mean(axes, keepdims=True)
    offset, slope = materialize((dbias - gain * inverse * dmean, dgain - gain * inverse * covariance))
    dy = gain * inverse * dx + offset + standardized * slope
    return (y, mean, var), (dy, dmean, 2 * covariance / inverse)


class GroupNorm(nnx.GroupNorm):
    """Group normalization: each image is normalized over its pixels and the channels of a group.

    Wu and He, "Group Normalization", https://arxiv.org/abs/1803.08494

    Args:
      features: channels c of the input [b, h, w, c].
      groups: number of groups.
      group_size: channels per group; replaces `groups`.
      epsilon: added to the variance.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of scale and bias.
      scale_init: initializer of the scale; zeros for the last norm of a residual branch.
      rngs: stream ``params``.

    Example:
      >>> norm = GroupNorm(64, group_size=16, rngs=nnx.Rngs(0))
      >>> norm(jnp.ones((1, 7, 7, 64))).shape, norm.num_groups
      ((1, 7, 7, 64), 4)
    """

    def __init__(
        self,
        features: int,
        *,
        groups: int = 32,
        group_size: int | None = None,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        scale_init: Any = ones,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            features,
            num_groups=_groups(features, groups, group_size),
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            scale_init=scale_init,
            bias_init=zeros,
            use_fast_variance=False,
            rngs=rngs,
        )


class LayerNorm(nnx.LayerNorm):
    """Layer normalization: each pixel, or token, is normalized over its channels.

    Ba et al., "Layer Normalization", https://arxiv.org/abs/1607.06450

    Args:
      features: channels c of the input [..., c].
      epsilon: added to the variance.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of scale and bias.
      rngs: stream ``params``.

    Example:
      >>> LayerNorm(64, rngs=nnx.Rngs(0))(jnp.ones((1, 7, 7, 64))).shape
      (1, 7, 7, 64)
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            features,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            scale_init=ones,
            bias_init=zeros,
            use_fast_variance=False,
            rngs=rngs,
        )


class RMSNorm(nnx.RMSNorm):
    """Root mean square normalization: each pixel, or token, is divided by the RMS of its channels, then scaled.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", https://arxiv.org/abs/1910.07467

    Args:
      features: channels c of the input [..., c].
      epsilon: added to the mean square.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the scale.
      rngs: stream ``params``.

    Example:
      >>> x = jnp.array([[1.0, 7.0]])     # its root mean square is 5
      >>> bool(jnp.allclose(RMSNorm(2, rngs=nnx.Rngs(0))(x), x / 5))
      True
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(features, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, scale_init=ones, rngs=rngs)


class EvoNormS0(nnx.Module):
    """Activation and normalization in one layer: ``x * sigmoid(v * x)`` divided by the group's standard deviation.

    Liu et al., "Evolving Normalization-Activation Layers", https://arxiv.org/abs/2004.02967

    Args:
      features: channels c of the input [b, h, w, c].
      groups: number of groups.
      group_size: channels per group; replaces `groups`.
      epsilon: added to the variance.
      activation: if False, the layer only scales and shifts each channel, as in timm.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of scale, bias and v.
      rngs: not used; accepted because all norms are built by the same call.

    Example:
      >>> EvoNormS0(64)(jnp.ones((1, 7, 7, 64))).shape
      (1, 7, 7, 64)
    """

    def __init__(
        self,
        features: int,
        *,
        groups: int = 32,
        group_size: int | None = None,
        epsilon: float = 1e-5,
        activation: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self.groups, self.epsilon, self.dtype = _groups(features, groups, group_size), epsilon, dtype
        self.scale = nnx.Param(ones(None, (features,), param_dtype))
        self.bias = nnx.Param(zeros(None, (features,), param_dtype))
        self.v = nnx.Param(ones(None, (features,), param_dtype)) if activation else nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [b, h, w, c], activated and normalized."""
        x, scale, bias = _with_channels(x, self.scale, self.bias, dtype=self.dtype)
        if self.v is not None:
            b, h, w, c = x.shape
            grouped = x.astype(_statistics_dtype(x)).reshape(b, h, w, self.groups, c // self.groups)
            deviation = jnp.sqrt(grouped.var(axis=(1, 2, 4)) + self.epsilon).astype(x.dtype)
            deviation = jnp.repeat(deviation, c // self.groups, axis=1).reshape(b, 1, 1, c)
            _, v = _with_channels(x, self.v, dtype=self.dtype)
            x = x * jax.nn.sigmoid(x * v) / deviation
        return x * scale + bias


class FilterResponseNorm(nnx.Module):
    """Normalization by the RMS over the image, then a ReLU whose threshold is learned.

    Singh and Krishnan, "Filter Response Normalization Layer", https://arxiv.org/abs/1911.09737

    Args:
      features: channels c of the input [b, h, w, c].
      epsilon: added to the mean square.
      activation: if False, there is no ReLU.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of scale, bias and tau.
      rngs: not used; accepted because all norms are built by the same call.

    Example:
      >>> FilterResponseNorm(64)(jnp.ones((1, 7, 7, 64))).shape
      (1, 7, 7, 64)
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        activation: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = nnx.Param(ones(None, (features,), param_dtype))
        self.bias = nnx.Param(zeros(None, (features,), param_dtype))
        self.tau = nnx.Param(zeros(None, (features,), param_dtype)) if activation else nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [b, h, w, c], normalized and activated."""
        x, scale, bias = _with_channels(x, self.scale, self.bias, dtype=self.dtype)
        mean_square = (x.astype(_statistics_dtype(x)) ** 2).mean(axis=(1, 2), keepdims=True)
        x = x * lax.rsqrt(mean_square + self.epsilon).astype(x.dtype) * scale + bias
        if self.tau is None:
            return x
        _, tau = _with_channels(x, self.tau, dtype=self.dtype)
        return jnp.maximum(x, tau)


def _groups(features: int, groups: int, group_size: int | None) -> int:
    """Returns the number of groups."""
    groups = features // group_size if group_size else groups
    if features % groups or (group_size and features % group_size):
        name, value = ("group_size", group_size) if group_size else ("groups", groups)
        raise ValueError(f"{name}: got {value}, expected a divisor of {features} channels.")
    return groups


def _with_channels(x: jax.Array, *parameters: nnx.Param, dtype: Any) -> list[jax.Array]:
    """Returns `x` [b, h, w, c] and the parameters as [1, 1, 1, c], all in one dtype."""
    x, *values = dtypes.promote_dtype((x, *(p[...] for p in parameters)), dtype=dtype)
    return [x, *(value.reshape(1, 1, 1, -1) for value in values)]


def _grouped(x: jax.Array, size: int) -> jax.Array:
    """Returns `x` [b, ...] as [b / size, size, ...]."""
    if x.shape[0] % size:
        raise UserError(
            f"batch_norm_group: got {size} for a batch of {x.shape[0]} images. Choose a divisor of the batch size."
        )
    return x.reshape(-1, size, *x.shape[1:])


def _statistics_dtype(x: jax.Array) -> Any:
    """Returns the dtype in which statistics of `x` are computed: float32 or wider."""
    return jnp.promote_types(x.dtype, jnp.float32)
