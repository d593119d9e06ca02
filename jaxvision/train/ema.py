"""The moving average of a model, which is often more accurate than the model itself."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.errors import UserError

M = TypeVar("M", bound=nnx.Module)

#: The averaged leaves: trainable parameters and BatchNorm statistics. Frozen leaves never change, so they need no
#: average; random keys cannot be averaged.
AVERAGED = nnx.Any(nnx.Param, nnx.BatchStat)


class EMA(nnx.Pytree):
    """Exponential moving average of a model's parameters and BatchNorm statistics, in float32 at least.

    Polyak and Juditsky, https://epubs.siam.org/doi/10.1137/0330046. Unlike `nnx.EMA` it has a warm-up, and it stays in
    float32 for a model in bfloat16, where 0.9999 × average would round back to the average.

    Args:
      model: the model to average. The average starts as a copy of it.
      decay: weight of the old average, in [0, 1). The average covers about 1 / (1 - decay) steps.
      warmup: whether to limit the decay of update t = 0, 1, ... to 1 - (1 + t)^(-2/3), as timm does. It is 0 at first,
        so that the random initialization is forgotten at once, 0.99 after 1,000 steps and 0.999 after 31,600. Without
        it, the average of a run shorter than 1 / (1 - decay) steps is nearly untrained.

    Raises:
      UserError: `decay` is out of range.

    Example:
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> ema = EMA(model, decay=0.5, warmup=False)
      >>> model.bias[...] = jnp.ones(3)
      >>> ema.update(model, 0)
      >>> ema.apply_to(model).bias[...]
      Array([0.5, 0.5, 0.5], dtype=float32)
    """

    def __init__(self, model: nnx.Module, *, decay: float, warmup: bool = True):
        if not 0 <= decay < 1:
            raise UserError(f"EMA: got decay={decay}, expected a number in [0, 1), such as 0.9998.")
        self.decay = decay
        self.warmup = warmup
        self.params = nnx.data(jax.tree.map(_float32_copy, nnx.state(model, AVERAGED)))

    def update(self, model: nnx.Module, t: Any) -> None:
        """Moves the average towards `model`.

        Args:
          model: after its update.
          t: number of updates before this one; may be traced.
        """
        decay = self.decay_at(t)
        nnx.update(
            self.params,
            jax.tree.map(
                lambda old, new: decay * old + (1 - decay) * new.astype(old.dtype),
                nnx.state(self.params),
                nnx.state(model, AVERAGED),
            ),
        )

    def decay_at(self, t: Any) -> Any:
        """Returns the decay of update `t`."""
        if not self.warmup:
            return self.decay
        return jnp.minimum(self.decay, 1 - (1 + jnp.asarray(t, jnp.float32)) ** (-2 / 3))

    def apply_to(self, model: M) -> M:
        """Returns a copy of `model` with the averaged leaves, in the dtypes of `model`."""
        graph, averaged, rest = nnx.split(model, AVERAGED, ...)  # type: ignore[misc]
        averaged = jax.tree.map(lambda mine, ema: ema.astype(mine.dtype), averaged, nnx.state(self.params))
        return nnx.merge(graph, averaged, rest)


def _float32_copy(x: jax.Array) -> jax.Array:
    # Always a copy: model and average are both donated to the step and must not share memory.
    return jnp.array(x, dtype=jnp.promote_types(x.dtype, jnp.float32), copy=True)
