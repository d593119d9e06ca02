"""Normalisation, with PyTorch's arithmetic."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation over all axes but the last.

    Under a sharded `jax.jit` the batch axis is the global batch, so statistics are synchronised over devices by
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
    """

    scale: nnx.Param
    bias: nnx.Param

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        scale_init: Any = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            features,
            use_running_average=True,
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            scale_init=scale_init,
            use_fast_variance=False,
            rngs=rngs,
        )
        self.frozen = False

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Joins the training or evaluation view; a frozen layer stays in the latter."""
        if use_running_average is not None:
            self.use_running_average = use_running_average or self.frozen

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Returns the normalised `x`, in the same shape; in training the statistics move on."""
        if not self.use_running_average:
            return super().__call__(x)
        # The statistics are constants here: one multiply-add for each number, as PyTorch does it. Worked out in
        # float32, which matters in bfloat16.
        scale = self.scale[...] * lax.rsqrt(self.var[...] + self.epsilon)
        bias = self.bias[...] - self.mean[...] * scale
        (dtype,) = {y.dtype for y in dtypes.promote_dtype((x, self.scale[...]), dtype=self.dtype)}
        affine = (scale.astype(dtype), bias.astype(dtype))
        # XLA's CPU backend would take the root anew for each number.
        scale, bias = lax.platform_dependent(*affine, cpu=lambda *c: lax.optimization_barrier(c), default=lambda *c: c)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return x.astype(dtype) * scale.reshape(shape) + bias.reshape(shape)


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
        self.gamma = nnx.Param(jnp.full(features, init, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the scaled branch, in the shape and dtype of `x`."""
        return x * self.gamma[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
