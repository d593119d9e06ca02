"""Where each array lies: an ordered table (pattern, PartitionSpec) over the names of a model's leaves.

The table has rows for the model only. What belongs to a parameter (its moments in the optimizer, its moving average)
is laid out as the parameter, whatever the optimizer calls it. Everything else (counters, random keys) is replicated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvision import tree
from jaxvision.errors import UserError, unknown_name_error

#: The value of a row: a spec, or a function from a leaf's shape to its spec.
Rule = PartitionSpec | Callable[[tuple[int, ...]], PartitionSpec]

#: Data parallelism: every device holds everything.
REPLICATED: tree.Table[Rule] = ((r".*", PartitionSpec()),)


def largest_axis(
    mesh_axis: str, mesh: Mesh, *, over: Rule = REPLICATED[0][1], min_size: int = 2**16
) -> Callable[[tuple[int, ...]], PartitionSpec]:
    """Returns the rule of fully sharded data parallelism (FSDP) for a leaf of any rank.

    Args:
      mesh_axis: the mesh axis to split over. An axis that the mesh does not have splits nothing.
      mesh: the devices.
      over: how the leaf is already split along other mesh axes.
      min_size: leaves with fewer elements are not split further: gathering them costs more than keeping them.

    Returns:
      A function from shape to spec. Of the dimensions that are not split yet and that the devices divide, it splits the
      largest; of equal ones the last, so output channels before input channels. Without such a dimension the leaf stays
      as it is.

    Example:
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> rule = largest_axis("data", make_mesh(), min_size=1)
      >>> tuple(rule((3, 3, 64, 128)))
      (None, None, None, 'data')
    """
    devices = mesh.shape.get(mesh_axis, 1)

    def rule(shape: tuple[int, ...]) -> PartitionSpec:
        spec = _spec_if_divisible(over, shape, mesh)
        axes = [*spec, *[None] * (len(shape) - len(spec))]
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % devices == 0]
        if devices == 1 or not free or math.prod(shape) < min_size:
            return spec
        longest = max(free, key=lambda i: (shape[i], i))
        axes[longest] = mesh_axis
        while axes and axes[-1] is None:
            axes.pop()
        return PartitionSpec(*axes)

    return rule


@dataclass(frozen=True)
class Rules:
    """Three tables over the names of a model's leaves.

    Attributes:
      used: layout in which a layer computes; split along the mesh axis ``tensor`` only.
      stored: layout between steps; also split along ``fsdp``.
      moments: layout of the gradient, the optimizer's moments and the moving average; with ZeRO-1 also split along
        ``data``.
    """

    used: tree.Table[Rule]
    stored: tree.Table[Rule]
    moments: tree.Table[Rule]


def make_rules(mesh: Mesh, tensor_rules: tree.Table[Rule] = (), *, zero1: bool = False, min_size: int = 2**16) -> Rules:
    """Returns where each array of a model lies on a mesh.

    Along ``data`` every device holds everything. Along ``fsdp`` each array is split (fully sharded data parallelism),
    and a layer gathers its parameters when it needs them. Along ``tensor`` the devices share the work of a layer, as
    `tensor_rules` say (Shoeybi et al., "Megatron-LM", https://arxiv.org/abs/1909.08053).

    Args:
      mesh: the devices.
      tensor_rules: the model's attribute `tensor_rules`: rows (pattern, spec over ``tensor``). Leaves that no row
        matches, and leaves whose shape the devices do not divide, are replicated along ``tensor``.
      zero1: also split the optimizer's moments and the moving average over ``data`` (ZeRO-1; Rajbhandari et al.,
        "ZeRO", https://arxiv.org/abs/1910.02054). Parameters stay whole: each device updates its part, and all gather
        the result.
      min_size: arrays with fewer elements are not split along ``fsdp`` and ``data``: gathering them costs more than
        keeping them.

    Example:
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> rules = make_rules(make_mesh({"data": 1, "fsdp": -1}), min_size=1)
      >>> shapes = {"model": {"fc": {"kernel": jax.ShapeDtypeStruct((8, 16), "float32")}}}
      >>> tuple(state_shardings(shapes, make_mesh({"fsdp": -1}), rules.stored)["model"]["fc"]["kernel"].spec)
      (None, 'fsdp')
    """

    def split(table: tree.Table[Rule], axis: str) -> tree.Table[Rule]:
        return tuple((pattern, largest_axis(axis, mesh, over=rule, min_size=min_size)) for pattern, rule in table)

    table = (*tensor_rules, *REPLICATED) if mesh.shape.get("tensor", 1) > 1 else REPLICATED
    used = tuple((pattern, functools.partial(_spec_if_divisible, rule, mesh=mesh)) for pattern, rule in table)
    stored = split(used, "fsdp")
    return Rules(used, stored, split(stored, "data") if zero1 else stored)


def _spec_if_divisible(rule: Rule, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the spec of a leaf, or an empty one where the devices do not divide its shape."""
    spec = rule if isinstance(rule, PartitionSpec) else rule(shape)
    sizes = [mesh.shape[axis] if axis else 1 for axis in spec]
    if len(spec) > len(shape) or any(n % size for n, size in zip(shape, sizes, strict=False)):
        return PartitionSpec()
    return spec


def state_shardings(
    abstract: Any,
    mesh: Mesh,
    table: tree.Table[Rule] = REPLICATED,
    *,
    moments: tree.Table[Rule] | None = None,
    unused_ok: bool = False,
) -> Any:
    """Returns the sharding of every leaf of a training state, from its shapes alone.

    The same tree serves `initialize`, the step and restoring.

    Args:
      abstract: shapes of the state, from `jaxvision.train.state.abstract_state`. Names of the model's leaves start with
        ``model.``.
      mesh: the devices.
      table: ordered rows (pattern, spec or function from shape to spec) over the names of the model's leaves without
        that prefix, such as ``blocks.0.attn.qkv.kernel``. The first row that matches applies.
      moments: the same for what belongs to a parameter, such as its moments. None: `table`.
      unused_ok: accept rows that match nothing.

    Returns:
      `abstract` with a `jax.sharding.NamedSharding` for each leaf.

    Raises:
      UserError: a pattern matches nothing, no row matches a leaf, or a spec does not fit a leaf.

    Example:
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> shapes = {"model": {"fc": {"kernel": jax.ShapeDtypeStruct((8, 16), "float32")}}}
      >>> state_shardings(shapes, make_mesh())["model"]["fc"]["kernel"].is_fully_replicated
      True
    """
    shapes = {leaf: x.shape for leaf, x in _leaves(abstract)}
    of_model = {leaf.removeprefix("model."): shape for leaf, shape in shapes.items() if leaf.startswith("model.")}
    rules = tree.match(list(of_model), table, unused_ok=unused_ok, what="sharding")
    specs = {name: _spec(name, shape, rules[name], mesh) for name, shape in of_model.items()}
    others = specs
    if moments is not None:
        rules = tree.match(list(of_model), moments, unused_ok=unused_ok, what="sharding")
        others = {name: _spec(name, shape, rules[name], mesh) for name, shape in of_model.items()}

    def sharding(path: Any, x: Any) -> NamedSharding:
        name = _name(path)
        owner = _owner(name, of_model)
        # The shapes must agree: a factored moment (Adafactor) is not laid out as its parameter.
        if owner is not None and of_model[owner] == x.shape:
            return NamedSharding(mesh, (specs if name.startswith("model.") else others)[owner])
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def spec_of(table: tree.Table[Rule], name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns the spec of one leaf of a model.

    >>> spec_of(REPLICATED, "fc.kernel", (8, 16)) == PartitionSpec()
    True
    """
    rule = tree.match([name], table, unused_ok=True, what="sharding")[name]
    return rule if isinstance(rule, PartitionSpec) else rule(shape)


def _leaves(abstract: Any) -> list[tuple[str, Any]]:
    return [(_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(abstract)]


def _name(path: Any) -> str:
    # A Flax Variable is a node whose only child is called `value`, which is not part of the name.
    return tree.join(path).removesuffix(".value")


def _owner(name: str, of_model: dict[str, tuple[int, ...]]) -> str | None:
    """Returns the longest name of a model's leaf that `name` ends with: fc.kernel of opt_state.0.mu.fc.kernel."""
    segments = name.split(".")
    tails = (".".join(segments[i:]) for i in range(len(segments)))
    return next((tail for tail in tails if tail in of_model), None)


def _spec(name: str, shape: tuple[int, ...], rule: Rule, mesh: Mesh) -> PartitionSpec:
    spec = rule if isinstance(rule, PartitionSpec) else rule(shape)
    if len(spec) > len(shape):
        raise UserError(f"sharding of {name!r}: got {spec}, expected at most {len(shape)} entries for shape {shape}.")
    for i, entry in enumerate(spec):
        axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
        for axis in axes:
            if axis not in mesh.shape:
                raise unknown_name_error(f"sharding of {name!r}", axis, mesh.axis_names, expected="an axis of the mesh")
        devices = math.prod(mesh.shape[axis] for axis in axes)
        if shape[i] % devices:
            raise UserError(
                f"sharding of {name!r}: got {spec}, but dimension {i} of shape {shape} is not divisible by the "
                f"{devices} devices along {' and '.join(axes)}."
            )
    return spec


#: Kinds of memory that a training state takes, whatever the batch size.
STATE = ("parameters", "statistics", "optimizer", "ema", "teacher", "other")


def state_bytes(abstract: Any, shardings: Any) -> dict[str, int]:
    """Returns the bytes that one device holds of a training state, by kind, without the padding of tiles.

    Args:
      abstract: from `jaxvision.train.state.abstract_state`.
      shardings: from `state_shardings`.

    Returns:
      ``parameters`` (including frozen ones), ``statistics`` (of BatchNorm), ``optimizer``, ``ema``, ``teacher`` and
      ``other`` (random keys).
    """
    total = dict.fromkeys(STATE, 0)
    leaves = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=lambda x: isinstance(x, nnx.Variable))
    places = jax.tree.leaves(shardings)
    for (path, leaf), place in zip(leaves, places, strict=True):
        kind = tree.join(path[:1])
        if kind == "model":
            kind = "statistics" if isinstance(leaf, nnx.BatchStat) else "parameters"
            kind = "other" if isinstance(leaf, nnx.RngState) else kind
        x = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        total[kind] += math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
    return total
