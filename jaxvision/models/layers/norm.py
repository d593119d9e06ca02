"""Normalization, with PyTorch's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from jaxvision.errors import UserError
from jaxvision.models.layers.init import constant, ones, zeros
from jaxvision.platform import by_platform

Norm = Callable[..., nnx.Module]  # (features, dtype=, param_dtype=, rngs=) -> a normalization over the last axis


class BatchNorm(nnx.Module):
    """Batch normalization over all axes but the last.

    Under a sharded `jax.jit` the batch axis is the global batch, so statistics are synchronized over devices by
    construction. The variance is computed in two passes, as PyTorch does, so that float32 results agree.

    Args:
      features: c of the input [..., c].
      epsilon: added to the variance. 1e-5; TF-ported models use 1e-3.
      momentum: the weight of the old statistics, Flax's convention: PyTorch's 0.1 is 0.9 here.
      dtype: of the computation; None takes the input's.
      param_dtype: of scale and bias. Statistics are float32 always.
      scale_init: initial scale; zeros for the last one of a residual branch.

    Attributes:
      frozen: if True the statistics are used and kept in training, too; `train.partial` sets it.
      group: images that are normalized together in training; None is the whole batch.
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
        # Not `nnx.BatchNorm`, which has the same arithmetic in training: it takes twice as long to build.
        self.mean = nnx.BatchStat(zeros(None, (features,), jnp.float32))
        self.var = nnx.BatchStat(ones(None, (features,), jnp.float32))
        self.scale = nnx.Param(scale_init(rngs.params(), (features,), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype))
        self.epsilon, self.momentum, self.dtype = epsilon, momentum, dtype
        self.use_running_average = True
        self.frozen = False
        self.group: int | None = None

    def set_view(self, use_running_average: bool | None = None, batch_norm_group: int | None = None) -> None:
        """Joins the training or evaluation view; a frozen layer stays in the latter."""
        if batch_norm_group is not None:
            self.group = batch_norm_group
        if use_running_average is not None:
            self.use_running_average = use_running_average or self.frozen

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalized `x`, in the same shape; in training the statistics move on."""
        shape = (1,) * (x.ndim - 1) + (-1,)
        x, gain, bias = dtypes.promote_dtype((x, self.scale[...], self.bias[...]), dtype=self.dtype)
        if not self.use_running_average:
            whole = x.shape
            if self.group is not None:
                x, shape = _grouped(x, self.group), (1, *shape)
            axes = tuple(range(x.ndim - len(whole), x.ndim - 1))  # of a group, or of all
            exact = x.astype(_exact(x))
            mean = exact.mean(axes, keepdims=True)
            var = lax.square(exact - mean).mean(axes, keepdims=True)
            for old, new in ((self.mean, mean), (self.var, var)):
                old[...] = self.momentum * old[...] + (1 - self.momentum) * new.reshape(-1, new.shape[-1]).mean(0)
            gain = lax.rsqrt(var + self.epsilon) * gain.reshape(shape)
            return ((x - mean) * gain + bias.reshape(shape)).astype(x.dtype).reshape(whole)
        # The statistics are constants here: one multiply-add for each number, as PyTorch does it. Worked out in
        # float32, which matters in bfloat16.
        scale = self.scale[...] * lax.rsqrt(self.var[...] + self.epsilon)
        bias = self.bias[...] - self.mean[...] * scale
        affine = (scale.astype(x.dtype), bias.astype(x.dtype))
        # XLA's CPU backend would take the root anew for each number.
        scale, bias = by_platform(*affine, cpu=lambda *c: lax.optimization_barrier(c), default=lambda *c: c)
        return x * scale.reshape(shape) + bias.reshape(shape)


class GroupNorm(nnx.GroupNorm):
    """Normalization of each image over its pixels and the channels of a group.

    Wu and He, "Group Normalization", https://arxiv.org/abs/1803.08494

    Args:
      features: c of the input [b, h, w, c].
      groups: number of groups.
      group_size: channels of a group, in the place of their number.
      epsilon: added to the variance.
      dtype: of the computation; None takes the promoted type of input and parameters.
      param_dtype: of scale and bias.
      scale_init: initial scale; zeros for the last one of a residual branch.
      rngs: the stream ``params``.

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
    """Normalization of each pixel, or token, over its channels.

    Ba et al., "Layer Normalization", https://arxiv.org/abs/1607.06450

    Args:
      features: c of the input [..., c].
      epsilon: added to the variance; timm's layers that apply an activation, too, have 1e-5.
      dtype: of the computation; None takes the promoted type of input and parameters.
      param_dtype: of scale and bias.
      rngs: the stream ``params``.

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
    """Division of each pixel, or token, by the root of the mean square of its channels, and a scale; no bias.

    Zhang & Sennrich, "Root Mean Square Layer Normalization", https://arxiv.org/abs/1910.07467

    Args:
      features: c of the input [..., c].
      epsilon: added to the mean square.
      dtype: of the computation; None takes the promoted type of input and parameters.
      param_dtype: of the scale.
      rngs: the stream ``params``.

    Example:
      >>> x = jnp.array([[1.0, 7.0]])     # whose root mean square is 5
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
    """An activation and a normalization in one: ``x * sigmoid(v * x)`` by the standard deviation of its group.

    Liu et al., "Evolving Normalization-Activation Layers", https://arxiv.org/abs/2004.02967

    Args:
      features: c of the input [b, h, w, c].
      groups: number of groups.
      group_size: channels of a group, in the place of their number.
      epsilon: added to the variance.
      activation: False leaves only the scale and the bias of each channel, as in timm.
      dtype: of the computation; None takes the promoted type of input and parameters.
      param_dtype: of scale, bias and v.
      rngs: not used.

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
        """Returns the activated and normalized `x`, in the same shape."""
        x, scale, bias = _with_channels(x, self.scale, self.bias, dtype=self.dtype)
        if self.v is not None:
            b, h, w, c = x.shape
            grouped = x.astype(_exact(x)).reshape(b, h, w, self.groups, c // self.groups)
            deviation = jnp.sqrt(grouped.var(axis=(1, 2, 4)) + self.epsilon).astype(x.dtype)
            deviation = jnp.repeat(deviation, c // self.groups, axis=1).reshape(b, 1, 1, c)
            _, v = _with_channels(x, self.v, dtype=self.dtype)
            x = x * jax.nn.sigmoid(x * v) / deviation
        return x * scale + bias


class FilterResponseNorm(nnx.Module):
    """A normalization without a mean, and an activation with a learned threshold in the place of a ReLU's zero.

    Singh and Krishnan, "Filter Response Normalization Layer", https://arxiv.org/abs/1911.09737

    Args:
      features: c of the input [b, h, w, c].
      epsilon: added to the mean of the squares.
      activation: False leaves the threshold away.
      dtype: of the computation; None takes the promoted type of input and parameters.
      param_dtype: of scale, bias and tau.
      rngs: not used.

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
        """Returns the normalized and activated `x`, in the same shape."""
        x, scale, bias = _with_channels(x, self.scale, self.bias, dtype=self.dtype)
        mean_square = (x.astype(_exact(x)) ** 2).mean(axis=(1, 2), keepdims=True)
        x = x * lax.rsqrt(mean_square + self.epsilon).astype(x.dtype) * scale + bias
        if self.tau is None:
            return x
        _, tau = _with_channels(x, self.tau, dtype=self.dtype)
        return jnp.maximum(x, tau)


def _groups(features: int, groups: int, group_size: int | None) -> int:
    """Returns the number of groups."""
    groups = features // group_size if group_size else groups
    if features % groups or (group_size and features % group_size):
        raise ValueError(f"{features} channels do not divide into groups")
    return groups


def _with_channels(x: jax.Array, *parameters: nnx.Param, dtype: Any) -> list[jax.Array]:
    """Returns `x` [b, h, w, c] and parameters as [1, 1, 1, c], in one dtype."""
    x, *values = dtypes.promote_dtype((x, *(p[...] for p in parameters)), dtype=dtype)
    return [x, *(value.reshape(1, 1, 1, -1) for value in values)]


def _grouped(x: jax.Array, size: int) -> jax.Array:
    """Returns `x` [b, ...] as [b / size, size, ...]."""
    if x.shape[0] % size:
        raise UserError(f"a batch of {x.shape[0]} images is not made of groups of {size} for BatchNorm")
    return x.reshape(-1, size, *x.shape[1:])


def _exact(x: jax.Array) -> Any:
    """Returns the dtype in which statistics of `x` are taken: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


class LayerScale(nnx.Module):
    """Multiplies a residual branch by a learned number per channel, near zero at first.

    Touvron et al., "Going deeper with Image Transformers", https://arxiv.org/abs/2103.17239

    Args:
      features: d of the input [..., d].
      init: the first value of all of ``gamma``, such as 1e-5.
      param_dtype: of ``gamma``; the input's dtype is kept.

    Example:
      >>> scale = LayerScale(8, 1e-5)
      >>> scale(jnp.ones((1, 5, 8))).shape
      (1, 5, 8)
    """

    def __init__(self, features: int, init: float, *, param_dtype: Any = jnp.float32):
        self.gamma = nnx.Param(constant(init)(None, (features,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the scaled branch, in the shape and dtype of `x`."""
        return x * self.gamma[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
