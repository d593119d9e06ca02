"""Stochastic depth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class DropPath(nnx.Module):
    """Sets a residual branch to zero for random samples, and scales the other samples by 1 / (1 - rate).

    Huang et al., "Deep Networks with Stochastic Depth", https://arxiv.org/abs/1603.09382

    Args:
      rate: probability of dropping a sample's branch, in [0, 1).
      rngs: stream ``dropout``. The layer forks it, so that it has its own random state.

    Attributes:
      traced_rate: a traced rate that replaces `rate` while blocks with different rates share one compiled program.
      deterministic: if True, nothing is dropped. The default.

    Example:
      >>> import jax.numpy as jnp
      >>> branch = DropPath(0.5, rngs=nnx.Rngs(0))
      >>> bool((branch(jnp.ones((4, 2, 2, 3))) == 1).all())     # evaluation is the default: nothing is dropped
      True
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        self.rate = rate
        self.traced_rate = nnx.data(None)
        self.deterministic = True
        self.rngs = rngs.dropout.fork() if rate > 0 else None

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode in a view made by `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [b, ...], in training with the branches of random samples dropped."""
        if self.rngs is None or self.deterministic:
            return x
        b = x.shape[0]
        kept = 1 - (self.rate if self.traced_rate is None else self.traced_rate)
        keep = jax.random.bernoulli(self.rngs(), kept, (b,) + (1,) * (x.ndim - 1))
        return x * keep.astype(x.dtype) / jnp.asarray(kept, x.dtype)  # a traced rate would promote x to float32


def rates(total: float, n: int, *, reaches_total: bool = True) -> list[float]:
    """Returns a rate of stochastic depth for each of `n` blocks, increasing linearly from 0.

    Args:
      total: the rate at the end.
      n: number of blocks.
      reaches_total: the last block has the rate `total` (ResNet, ViT); otherwise ``total * (n - 1) / n``
        (EfficientNet).

    >>> rates(0.2, 3)
    [0.0, 0.1, 0.2]
    """
    steps = max(n - 1, 1) if reaches_total else n
    return [total * i / steps for i in range(n)]
