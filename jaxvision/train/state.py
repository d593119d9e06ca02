"""Everything that a run must not lose: the model, its optimizer, its average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxvision.train.ema import EMA


@nnx.dataclass
class TrainState(nnx.Pytree):
    """The state of training; all of it is saved and restored, to the bit.

    Attributes:
      model: in the evaluation view. It carries its BatchNorm statistics and its random keys (of dropout).
      optimizer: with its moments and the number of updates made, `optimizer.step`.
      ema: the moving average, or None.

    Names of leaves start with the attribute: ``model.fc.kernel``, ``optimizer.opt_state.0.mu.fc.kernel``,
    ``ema.params.fc.kernel``.
    """

    model: nnx.Module
    optimizer: nnx.Optimizer
    ema: EMA | None = None


def create_state(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float | None = None,
    ema_warmup: bool = False,
) -> TrainState:
    """Returns the state of a model that has not been trained yet.

    Args:
      model: any model. Its `nnx.Param` leaves will be trained; `Frozen` ones will not and get no optimizer state.
      tx: the optimizer, from `jaxvision.train.optim` or optax.
      ema_decay: weight of the old average; None keeps no average.
      ema_warmup: see `jaxvision.train.ema.EMA`.
    """
    ema = None if ema_decay is None else EMA(model, decay=ema_decay, warmup=ema_warmup)
    return TrainState(model=model, optimizer=nnx.Optimizer(model, tx, wrt=nnx.Param), ema=ema)


#: A model that has its weights, or a function without arguments that builds one at random.
Model = nnx.Module | Callable[[], nnx.Module]


def abstract_state(create: Callable[[nnx.Module], TrainState], model: Model) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the structure of the state and its shapes, at no cost in memory or time.

    Args:
      create: makes the state of a model, such as ``functools.partial(create_state, tx=tx)``.
      model: the model or its builder.

    Returns:
      (graph, abstract): graph is what `make_train_step` and `nnx.merge` take; abstract has a `jax.ShapeDtypeStruct`
      for every array.

    Example:
      >>> import functools
      >>> create = functools.partial(create_state, tx=optax.sgd(0.1, momentum=0.9))
      >>> graph, abstract = abstract_state(create, lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> abstract["model"]["kernel"].get_value().shape
      (2, 3)
    """
    return nnx.split(nnx.eval_shape(lambda: create(_built(model))))


def initialize(create: Callable[[nnx.Module], TrainState], model: Model, shardings: Any) -> nnx.State:
    """Returns a fresh state, every array where it belongs.

    A builder runs inside jit: each device computes its own part only, and none ever holds the whole. A model that
    has weights is laid out first, and what surrounds it (moments, averages) is made in place.

    Args:
      create: as for `abstract_state`.
      model: the model, which stays usable (its arrays are copied), or its builder.
      shardings: of every leaf, from `jaxvision.parallel.rules.state_shardings`.

    Raises:
      UserError: whatever `create` and the builder raise.
    """
    if isinstance(model, nnx.Module):
        graph, leaves = nnx.split(model)
        leaves = jax.tree.map(_placed, leaves, shardings["model"])
        # Copied, for the train step is given the state's memory to write into.
        fill = jax.jit(
            lambda leaves: nnx.state(create(nnx.merge(graph, jax.tree.map(jnp.copy, leaves)))),
            out_shardings=shardings,
        )
        return fill(leaves)
    return jax.jit(lambda: nnx.state(create(_built(model))), out_shardings=shardings)()


def evaluated_model(state: TrainState) -> nnx.Module:
    """Returns the model to evaluate and to keep: with the averaged weights where there is an average."""
    return state.model if state.ema is None else state.ema.apply_to(state.model)


def gather_model(graph: nnx.GraphDef, state: nnx.State, shardings: Any) -> nnx.Module:
    """Returns the model to evaluate and to keep, whole, on one device of each process.

    All processes take part. One array after the other is brought together: beside this model no device needs room for
    more than one whole array, so that a state that only fits in parts can be exported.

    Args:
      graph: of the state, from `abstract_state`.
      state: of training, in parts.
      shardings: of every leaf of `state`.
    """

    def evaluated(state: nnx.State) -> nnx.Module:
        return evaluated_model(nnx.merge(graph, state))

    leaves = jax.jit(lambda state: nnx.state(evaluated(state)), out_shardings=shardings["model"])(state)
    return nnx.merge(nnx.graphdef(nnx.eval_shape(evaluated, state)), jax.tree.map(_whole, leaves))


def _whole(x: jax.Array) -> jax.Array:
    everywhere = jax.sharding.NamedSharding(cast(Any, x.sharding).mesh, jax.sharding.PartitionSpec())
    # Waited for: one whole array at a time, and XLA's CPU client can lock up with many small collectives under way.
    return jax.block_until_ready(jax.jit(_same, out_shardings=everywhere)(x)).addressable_data(0)


def _same(x: jax.Array) -> jax.Array:  # a function of its own, so that each shape is compiled once
    return x


def _placed(x: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Returns an array, the same in all processes, on the devices of all of them."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        return jax.random.wrap_key_data(_placed(jax.random.key_data(x), whole), impl=jax.random.key_impl(x))
    return jax.make_array_from_callback(x.shape, sharding, lambda part: np.asarray(x[part]))


def _built(model: Model) -> nnx.Module:
    return model if isinstance(model, nnx.Module) else model()
