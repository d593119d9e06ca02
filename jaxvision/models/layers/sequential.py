"""Layers in a row."""

from __future__ import annotations

from typing import Any

from flax import nnx


class Sequential(nnx.List):
    """A list of layers and functions that is called as their composition.

    Unlike `nnx.Sequential` it adds no level to the names of its leaves: they are ``downsample.0.kernel``, as timm's.

    Example:
      >>> import jax.numpy as jnp
      >>> net = Sequential([nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu])
      >>> net(jnp.zeros((1, 3))).shape
      (1, 4)
    """

    def __call__(self, x: Any) -> Any:
        """Returns `x` passed through each layer in turn."""
        for layer in self:
            x = layer(x)
        return x
