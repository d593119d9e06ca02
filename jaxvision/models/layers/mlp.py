"""Multilayer perceptrons of transformer blocks, plain and gated."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxvision.errors import unknown_name_error
from jaxvision.models.layers.init import halves, normal, ones, zeros
from jaxvision.models.layers.norm import Norm
from jaxvision.platform import by_platform

# timm truncates at an absolute 2, which is a hundred standard deviations and therefore has no effect.
linear_init = normal(0.02)


def linear(features: int, out_features: int, **options: Any) -> nnx.Linear:
    """Returns a linear layer initialized as in timm's ViTs: kernel N(0, 0.02^2), bias zero.

    >>> linear(8, 4, rngs=nnx.Rngs(0))(jnp.zeros((1, 8))).tolist()
    [[0.0, 0.0, 0.0, 0.0]]
    """
    defaults = {"kernel_init": linear_init, "bias_init": zeros, "dot_general": _product}
    return nnx.Linear(features, out_features, **{**defaults, **options})


def _product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """Returns the product of `x` [..., c] and `kernel` [c, d]. Replaces `jax.lax.dot_general` in `nnx.Linear`."""

    # On CPU the gradient of the kernel takes up to 1.6 times as long if batch and tokens stay separate axes. The
    # checkpoint keeps x for it, which the other platforms' product keeps too, instead of the reshaped x.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_matrices(x, kernel):
        rows = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
        return rows.reshape(*x.shape[:-1], kernel.shape[-1])

    return by_platform(
        x,
        kernel,
        cpu=of_matrices if x.ndim > 2 and options.get("out_sharding") is None else None,
        default=lambda x, kernel: lax.dot_general(x, kernel, dimensions, **options),
    )


ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu")


def activate(x: jax.Array, activation: str) -> jax.Array:
    """Returns `x` after an activation function, in the same shape.

    Args:
      x: [...].
      activation: ``"gelu"``, exact, with the error function; ``"gelu_tanh"``, its approximation; ``"quick_gelu"``,
        OpenAI's x sigmoid(1.702 x); or ``"silu"``, x sigmoid(x).

    Raises:
      UserError: the activation is unknown.

    >>> [round(float(activate(jnp.float32(1), name)), 4) for name in ("gelu", "gelu_tanh", "quick_gelu", "silu")]
    [0.8413, 0.8412, 0.8458, 0.7311]
    """
    match activation:
        case "gelu":
            return by_platform(x, cpu=_gelu, gpu=_gelu_recomputed, default=_exact_gelu)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "silu":
            return jax.nn.silu(x)
    raise unknown_name_error("activation", activation, ACTIVATIONS)


_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)
# In reverse mode only the input is kept, which the layer before it wrote, instead of two arrays of its size. XLA's TPU
# backend chooses this itself, and is slower with the barrier around it.
_gelu_recomputed = jax.checkpoint(_exact_gelu)


def _gelu(x: jax.Array) -> jax.Array:
    # As in PyTorch. `jax.nn.gelu` uses erfc, which XLA's CPU backend computes in two branches for each element.
    precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * precise * (1 + jax.lax.erf(precise * math.sqrt(0.5)))).astype(x.dtype)


class Mlp(nnx.Module):
    """Linear, activation, linear, with dropout after each linear layer, as in the ViT paper.

    Args:
      features: width d of the input and the output [..., d].
      hidden_features: width between the two linear layers.
      activation: as for `activate`.
      use_bias: whether the linear layers have biases.
      norm: norm before the second layer, BEiT-3's sub-LN; None for no norm.
      dropout: dropout rate after each of the two layers.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the parameters.
      kernel_init: initializer of both kernels.
      rngs: streams ``params`` and, for dropout, ``dropout``.

    Example:
      >>> mlp = Mlp(8, 32, rngs=nnx.Rngs(0))
      >>> mlp(jnp.ones((1, 5, 8))).shape
      (1, 5, 8)
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: str = "gelu",
        use_bias: bool = True,
        norm: Norm | None = None,
        dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = linear_init,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.activation = activation
        self.fc1 = linear(features, hidden_features, use_bias=use_bias, kernel_init=kernel_init, **types)
        self.drop1 = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.norm = nnx.data(None) if norm is None else norm(hidden_features, **types)
        self.fc2 = linear(hidden_features, features, use_bias=use_bias, kernel_init=kernel_init, **types)
        self.drop2 = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [..., d] for `x` [..., d]."""
        x = self.drop1(activate(self.fc1(x), self.activation))
        return self.drop2(self.fc2(x if self.norm is None else self.norm(x)))


class GluMlp(nnx.Module):
    """SwiGLU with one linear layer for both gate and value: ``fc2(silu(gate) * value)``.

    Shazeer, "GLU Variants Improve Transformer", https://arxiv.org/abs/2002.05202

    Args:
      features: width d of the input and the output [..., d].
      hidden_features: width of gate and value together. ``fc2`` takes half of it.
      **options: other arguments of `Mlp`.

    Example:
      >>> mlp = GluMlp(8, 32, rngs=nnx.Rngs(0))
      >>> mlp(jnp.ones((1, 5, 8))).shape, mlp.fc2.kernel.shape
      ((1, 5, 8), (16, 8))
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: str = "silu",
        use_bias: bool = True,
        norm: Norm | None = None,
        dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        half = hidden_features // 2
        self.activation = activation
        # timm initializes the second half like a gate, although it is the value.
        self.fc1 = linear(
            features,
            2 * half,
            use_bias=use_bias,
            kernel_init=halves(linear_init, normal(1e-6)),
            bias_init=halves(zeros, ones),
            **types,
        )
        self.drop1 = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.norm = nnx.data(None) if norm is None else norm(half, **types)
        self.fc2 = linear(half, features, use_bias=use_bias, **types)
        self.drop2 = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [..., d] for `x` [..., d]."""
        gate, value = jnp.split(self.fc1(x), 2, axis=-1)
        x = self.drop1(activate(gate, self.activation) * value)
        return self.drop2(self.fc2(x if self.norm is None else self.norm(x)))


class SwiGlu(nnx.Module):
    """SwiGLU with separate linear layers for gate and value: ``fc2(silu(fc1_g) * fc1_x)``.

    Args:
      features: width d of the input and the output [..., d].
      hidden_features: width of the gate and of the value.
      **options: other arguments of `Mlp`.

    Example:
      >>> mlp = SwiGlu(8, 16, rngs=nnx.Rngs(0))
      >>> mlp(jnp.ones((1, 5, 8))).shape
      (1, 5, 8)
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: str = "silu",
        use_bias: bool = True,
        norm: Norm | None = None,
        dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.activation = activation
        self.fc1_g = linear(features, hidden_features, kernel_init=normal(1e-6), bias_init=ones, **types)
        self.fc1_x = linear(features, hidden_features, **types)
        self.drop1 = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.norm = (
            nnx.data(None) if norm is None else norm(hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        )
        self.fc2 = linear(hidden_features, features, **types)
        self.drop2 = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [..., d] for `x` [..., d]."""
        x = self.drop1(activate(self.fc1_g(x), self.activation) * self.fc1_x(x))
        return self.drop2(self.fc2(x if self.norm is None else self.norm(x)))
