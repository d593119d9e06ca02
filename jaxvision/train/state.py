"""The state of training: the model, its optimizer and its moving average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxvision.models.layers.deferred import Deferred, deferred, place_parts
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import largest_axis
from jaxvision.train.ema import AVERAGED, EMA


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

    No device holds more than its part of the state and one array, and the host holds one array at a time: a function
    that builds the model runs within `deferred`, so each array is drawn or read when it is placed. Moments and averages
    are computed on the devices that hold them. Only a user's model is first initialized on one device, unless a file
    has its weights.

    Args:
      create: as for `abstract_state`.
      model: the model, which stays usable because its arrays are copied, or a function that builds it.
      shardings: of every leaf, from `jaxvision.parallel.rules.state_shardings`.
    """
    return state_of(create, *place_model(model, shardings["model"]), shardings)


def state_of(create: Callable[[nnx.Module], TrainState], graph: nnx.GraphDef, leaves: nnx.State, shardings: Any) -> Any:
    """Returns the state before the first step of a model that is on the devices already.

    Args:
      create: as for `abstract_state`.
      graph: structure of the model.
      leaves: state of the model, sharded. Its arrays become those of the result and cannot be used any more.
      shardings: as for `initialize`.
    """
    fill = jax.jit(
        lambda leaves: nnx.state(create(nnx.merge(graph, leaves))), out_shardings=shardings, donate_argnums=0
    )
    return fill(leaves)


def place_model(model: Model, shardings: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the structure of a model, and its arrays, which are placed on the devices one at a time.

    Args:
      model: as for `initialize`.
      shardings: of every leaf of the model.
    """
    is_given = isinstance(model, nnx.Module)
    with deferred():
        graph, leaves = nnx.split(_built(model))
    values, structure = jax.tree.flatten(leaves)
    del leaves  # so that each array is released when it has been placed
    for i, sharding in enumerate(jax.tree.leaves(shardings)):
        values[i] = _placed(jnp.copy(values[i]) if is_given else values[i], sharding)
    return graph, jax.tree.unflatten(structure, values)


def evaluated_leaves(state: nnx.State) -> nnx.State:
    """Returns the leaves of a training state that `evaluated_state` needs, under the same names.

    They are the model's, but the average's where there is one. A checkpoint can be restored to these alone.

    Args:
      state: of training, with arrays, shapes or shardings.
    """
    if "ema" not in state:
        return nnx.State({"model": state["model"]})
    rest = nnx.filter_state(state.get("model", nnx.State({})), nnx.Not(AVERAGED))
    return nnx.State({"ema": state["ema"]} | ({"model": rest} if len(rest) else {}))


def evaluated_state(state: nnx.State) -> nnx.State:
    """Returns the state of the model to evaluate and to export: with the averaged weights if there is an average.

    It shares the arrays of `state`. The averaged ones are in the average's dtype, which `Cast` undoes.

    Args:
      state: of training, or its `evaluated_leaves`; with arrays, shapes or shardings.

    Example:
      >>> import functools
      >>> create = functools.partial(create_state, tx=optax.adam(0.1), ema_decay=0.9)
      >>> _, abstract = abstract_state(create, lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> list(evaluated_state(abstract))
      ['bias', 'kernel']
    """
    leaves = evaluated_leaves(state)
    if "ema" not in leaves:
        return leaves["model"]
    averaged = leaves["ema"]["params"]
    return nnx.merge_state(leaves["model"], averaged) if "model" in leaves else averaged


@dataclass(frozen=True)
class Cast:
    """Casts the arrays of a model back to its own dtypes.

    Attributes:
      dtypes: of the model's leaves, in their order.
    """

    dtypes: tuple[Any, ...]

    @classmethod
    def to(cls, abstract: nnx.State) -> Cast:
        """Returns the cast to the dtypes of a model's abstract state."""
        return cls(tuple(x.dtype for x in jax.tree.leaves(abstract)))

    def __call__(self, model: nnx.Module) -> nnx.Module:
        graph, state = nnx.split(model)
        leaves, structure = jax.tree.flatten(state)
        leaves = [x if x.dtype == dtype else x.astype(dtype) for x, dtype in zip(leaves, self.dtypes, strict=True)]
        return nnx.merge(graph, jax.tree.unflatten(structure, leaves))


def gather_model(graph: nnx.GraphDef, state: nnx.State) -> nnx.Module:
    """Returns the model on the devices of each process.

    All processes must call it. If the devices of a process hold all of the model, it stays where it is: on one device
    if each holds a copy, else split over them. Otherwise its arrays are gathered one at a time and split over the
    devices of each process, so that a model that only fits when it is sharded can still be exported.

    Args:
      graph: structure of the model, from ``nnx.split``.
      state: of the model, sharded, from `evaluated_state`. If the caller holds no other reference, each array is
        released when it has been gathered.
    """
    leaves, structure = jax.tree.flatten(state)
    del state
    if all(x.is_fully_replicated for x in leaves):
        leaves = [x.addressable_data(0) for x in leaves]
    elif not all(x.is_fully_addressable for x in leaves):
        mesh = make_mesh({"data": 1, "fsdp": -1}, devices=jax.local_devices())
        split = largest_axis("fsdp", mesh)
        for i, x in enumerate(leaves):
            leaves[i] = jax.device_put(gathered(x), jax.sharding.NamedSharding(mesh, split(x.shape)))
    return nnx.merge(graph, jax.tree.unflatten(structure, leaves))


def gathered(x: jax.Array) -> jax.Array:
    """Returns a sharded array on one device of each process. All processes must call it."""
    everywhere = jax.sharding.NamedSharding(cast(Any, x.sharding).mesh, jax.sharding.PartitionSpec())
    # Waits for each array, to hold one at a time, and because XLA's CPU client can lock up with many small collectives.
    return jax.block_until_ready(jax.jit(_identity, out_shardings=everywhere)(x)).addressable_data(0)


def _identity(x: jax.Array) -> jax.Array:  # a named function, so that jit compiles each shape once
    return x


def _placed(x: Any, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Returns an array on the devices of all processes, each of which passes the same `x`."""
    if isinstance(x, Deferred):
        placed = x.place(sharding)
    elif sharding.is_fully_addressable:
        placed = jax.device_put(x, sharding)
    elif jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        return jax.random.wrap_key_data(_placed(jax.random.key_data(x), everywhere), impl=jax.random.key_impl(x))
    else:
        placed = place_parts(lambda part: np.asarray(x[part]), x.shape, sharding)
    return jax.block_until_ready(placed)  # before its values on the host are released


def _built(model: Model) -> nnx.Module:
    return model if isinstance(model, nnx.Module) else model()
