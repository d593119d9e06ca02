"""Stochastic depth: residual branches that sometimes do not happen."""

from __future__ import annotations

import jax
from flax import nnx


class DropPath(nnx.Module):
    """Drops a residual branch for whole samples, and scales what is kept by 1/(1 - rate).

    Huang et al., "Deep Networks with Stochastic Depth", https://arxiv.org/abs/1603.09382

    Args:
      rate: probability of dropping a sample's branch, in [0, 1).
      rngs: the stream ``dropout`` is forked, so the layer carries its own random state.

    Example:
      >>> import jax.numpy as jnp
      >>> branch = DropPath(0.5, rngs=nnx.Rngs(0))
      >>> bool((branch(jnp.ones((4, 2, 2, 3))) == 1).all())     # evaluation is the default: nothing is dropped
      True
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        self.rate = rate
        self.traced_rate = nnx.data(None)  # set where blocks of other rates share one program
        self.deterministic = True
        self.rngs = rngs.dropout.fork() if rate > 0 else None

    def set_view(self, deterministic: bool | None = None) -> None:
        """Joins the training or evaluation view."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [b, ...] with samples dropped (training) or `x` itself (evaluation)."""
        if self.rngs is None or self.deterministic:
            return x
        b = x.shape[0]
        kept = 1 - (self.rate if self.traced_rate is None else self.traced_rate)
        keep = jax.random.bernoulli(self.rngs(), kept, (b,) + (1,) * (x.ndim - 1))
        return x * keep.astype(x.dtype) / kept


def rates(total: float, n: int, *, last_gets_all: bool = True) -> list[float]:
    """Returns a rate for each of `n` blocks, rising linearly from 0.

    Args:
      total: the rate towards which it rises.
      n: number of blocks.
      last_gets_all: the last block gets `total` (ResNet, ViT); else ``total * (n - 1) / n`` (EfficientNet).

    >>> rates(0.2, 3)
    [0.0, 0.1, 0.2]
    """
    steps = max(n - 1, 1) if last_gets_all else n
    return [total * i / steps for i in range(n)]
