"""A list of layers that is called as their composition."""

from __future__ import annotations

from typing import Any

from flax import nnx


class Sequential(nnx.List):
    """Layers and functions, applied one after the other.

    Unlike `nnx.Sequential` it adds no segment to parameter names, so they match timm's: ``downsample.0.kernel``.

    Example:
      >>> import jax.numpy as jnp
      >>> net = Sequential([nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu])
      >>> net(jnp.zeros((1, 3))).shape
      (1, 4)
    """

    def __call__(self, x: Any) -> Any:
        """Returns `x` passed through each layer in order."""
        for layer in self:
            x = layer(x)
        return x
