"""The state of training: the model, its optimizer and its moving average."""

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
    """The state of training, which a checkpoint saves and restores bit for bit.

    Attributes:
      model: in the evaluation view, with its BatchNorm statistics and its random keys (of dropout).
      optimizer: with its moments and the number of updates, `optimizer.step`.
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
    ema_warmup: bool = True,
) -> TrainState:
    """Returns the state of a model before its first step.

    Args:
      model: any NNX module. Its `nnx.Param` leaves train. Its `Frozen` leaves do not, and get no optimizer state.
      tx: the optimizer, from `jaxvision.train.optim.create_optimizer` or optax.
      ema_decay: weight of the old value in the moving average. None keeps no average.
      ema_warmup: see `jaxvision.train.ema.EMA`.
    """
    ema = None if ema_decay is None else EMA(model, decay=ema_decay, warmup=ema_warmup)
    return TrainState(model=model, optimizer=nnx.Optimizer(model, tx, wrt=nnx.Param), ema=ema)


#: A model with weights, or a function without arguments that returns one with random weights.
Model = nnx.Module | Callable[[], nnx.Module]


def abstract_state(create: Callable[[nnx.Module], TrainState], model: Model) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the structure and the shapes of a state, without allocating arrays.

    Args:
      create: returns the state of a model, such as ``functools.partial(create_state, tx=tx)``.
      model: the model, or a function that builds it.

    Returns:
      (graph, abstract): graph is for `make_train_step` and `nnx.merge`; abstract has a `jax.ShapeDtypeStruct` for every
      array.

    Example:
      >>> import functools
      >>> create = functools.partial(create_state, tx=optax.sgd(0.1, momentum=0.9))
      >>> graph, abstract = abstract_state(create, lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> abstract["model"]["kernel"].get_value().shape
      (2, 3)
    """
    return nnx.split(nnx.eval_shape(lambda: create(_built(model))))


def initialize(create: Callable[[nnx.Module], TrainState], model: Model, shardings: Any) -> nnx.State:
    """Returns the state before the first step, sharded over the devices.

    A function that builds the model runs inside jit, where each device computes only its own part. A model with weights
    is copied to the devices first, and its moments and averages are computed there.

    Args:
      create: as for `abstract_state`.
      model: the model, which stays usable because its arrays are copied, or a function that builds it.
      shardings: of every leaf, from `jaxvision.parallel.rules.state_shardings`.
    """
    if isinstance(model, nnx.Module):
        graph, leaves = nnx.split(model)
        leaves = jax.tree.map(_placed, leaves, shardings["model"])
        # Copied, because the train step writes into the memory of the state.
        fill = jax.jit(
            lambda leaves: nnx.state(create(nnx.merge(graph, jax.tree.map(jnp.copy, leaves)))),
            out_shardings=shardings,
        )
        return fill(leaves)
    return jax.jit(lambda: nnx.state(create(_built(model))), out_shardings=shardings)()


def evaluated_model(state: TrainState) -> nnx.Module:
    """Returns the model to evaluate and to export: with the averaged weights if there is an average."""
    return state.model if state.ema is None else state.ema.apply_to(state.model)


def gather_model(graph: nnx.GraphDef, state: nnx.State, shardings: Any) -> nnx.Module:
    """Returns the unsharded model to evaluate and to export, on one device of each process.

    All processes must call it. Arrays are gathered one at a time, so that a state that only fits when it is sharded can
    still be exported.

    Args:
      graph: graph definition of the state, from `abstract_state`.
      state: of training, sharded.
      shardings: of every leaf of `state`.
    """

    def evaluated(state: nnx.State) -> nnx.Module:
        return evaluated_model(nnx.merge(graph, state, copy=True))  # a copy: NNX without graph mode refuses aliases

    leaves = jax.jit(lambda state: nnx.state(evaluated(state)), out_shardings=shardings["model"])(state)
    return nnx.merge(nnx.graphdef(nnx.eval_shape(evaluated, state)), jax.tree.map(_gathered, leaves))


def _gathered(x: jax.Array) -> jax.Array:
    everywhere = jax.sharding.NamedSharding(cast(Any, x.sharding).mesh, jax.sharding.PartitionSpec())
    # Waits for each array, to hold one at a time, and because XLA's CPU client can lock up with many small collectives.
    return jax.block_until_ready(jax.jit(_identity, out_shardings=everywhere)(x)).addressable_data(0)


def _identity(x: jax.Array) -> jax.Array:  # a named function, so that jit compiles each shape once
    return x


def _placed(x: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Returns an array on the devices of all processes, each of which passes the same `x`."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        return jax.random.wrap_key_data(_placed(jax.random.key_data(x), everywhere), impl=jax.random.key_impl(x))
    return jax.make_array_from_callback(x.shape, sharding, lambda part: np.asarray(x[part]))


def _built(model: Model) -> nnx.Module:
    return model if isinstance(model, nnx.Module) else model()
