"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.init import normal

# timm truncates this at an absolute 2, which is a hundred standard deviations out: no truncation at all.
linear_init = normal(0.02)


class Mlp(nnx.Module):
    """Linear, GELU, linear; dropout after each linear layer, as in the ViT paper.

    The GELU is the exact one, with the error function: timm's weights were trained with it.

    Args:
      features: d of the input and the output [..., d].
      hidden_features: width in between.
      dropout: rate after each of the two layers.
      dtype: of the computation; None takes the promotion of input and parameters.
      param_dtype: of the parameters.
      kernel_init: of both matrices.
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
        dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = linear_init,
        rngs: nnx.Rngs,
    ):
        linear = {"dtype": dtype, "param_dtype": param_dtype, "kernel_init": kernel_init, "rngs": rngs}
        self.fc1 = nnx.Linear(features, hidden_features, **linear)
        self.drop1 = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.fc2 = nnx.Linear(hidden_features, features, **linear)
        self.drop2 = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [..., d]."""
        x = self.drop1(jax.nn.gelu(self.fc1(x), approximate=False))
        return self.drop2(self.fc2(x))
