"""Where each array lies: an ordered table (pattern, PartitionSpec) over the names of the model's leaves.

The table speaks of the model only. What belongs to a parameter (its moments in the optimizer, its moving average) lies
where the parameter lies, whatever the optimizer calls it; everything else (counters, random keys) is on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvision import tree
from jaxvision.errors import UserError, unknown

#: A row's value: a spec, or a function from a leaf's shape to its spec.
Rule = PartitionSpec | Callable[[tuple[int, ...]], PartitionSpec]

#: Data parallelism: every device holds everything.
REPLICATED: tree.Table[Rule] = ((r".*", PartitionSpec()),)


def largest_axis(mesh_axis: str, mesh: Mesh, *, min_size: int = 2**16) -> Callable[[tuple[int, ...]], PartitionSpec]:
    """Returns the rule of fully sharded data parallelism (FSDP) for any leaf, whatever its rank.

    Args:
      mesh_axis: the axis of the mesh to spread over.
      mesh: tells how many devices that are.
      min_size: leaves with fewer elements stay whole: gathering them costs more than keeping them.

    Returns:
      A function from shape to spec: the largest dimension that the devices divide is split; where there is none, the
      leaf stays whole. The last of equals is taken: output channels before input channels.

    Example:
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> rule = largest_axis("data", make_mesh(), min_size=1)
      >>> tuple(rule((3, 3, 64, 128)))
      (None, None, None, 'data')
    """
    devices = mesh.shape[mesh_axis]

    def rule(shape: tuple[int, ...]) -> PartitionSpec:
        divisible = [i for i, size in enumerate(shape) if size % devices == 0]
        if not divisible or math.prod(shape) < min_size:
            return PartitionSpec()
        longest = max(divisible, key=lambda i: (shape[i], i))
        return PartitionSpec(*(mesh_axis if i == longest else None for i in range(longest + 1)))

    return rule


def state_shardings(abstract: Any, mesh: Mesh, table: tree.Table[Rule] = REPLICATED) -> Any:
    """Returns the sharding of every leaf of a training state, from its shapes alone.

    The one tree serves initialise, step and restore.

    Args:
      abstract: the state's shapes, as `jaxvision.train.state.abstract_state` gives them; the model's
        leaves are those whose names start with ``model.``.
      mesh: the devices.
      table: ordered rows (pattern, spec or function from shape to spec) over the model's names
        without that prefix, such as ``blocks.0.attn.qkv.kernel``. The first match wins.

    Returns:
      `abstract` with a `jax.sharding.NamedSharding` in the place of each leaf.

    Raises:
      UserError: a pattern matches nothing, a leaf is matched by no row, or a spec does not fit a leaf.

    Example:
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> shapes = {"model": {"fc": {"kernel": jax.ShapeDtypeStruct((8, 16), "float32")}}}
      >>> state_shardings(shapes, make_mesh())["model"]["fc"]["kernel"].is_fully_replicated
      True
    """
    shapes = {leaf: x.shape for leaf, x in _leaves(abstract)}
    of_model = {leaf.removeprefix("model."): shape for leaf, shape in shapes.items() if leaf.startswith("model.")}
    rules = tree.match(list(of_model), table, what="sharding")
    specs = {name: _spec(name, shape, rules[name], mesh) for name, shape in of_model.items()}

    def sharding(path: Any, x: Any) -> NamedSharding:
        owner = _owner(_name(path), of_model)
        # The shape has to agree, too: a factored moment (Adafactor) is not laid out as its parameter.
        if owner is not None and of_model[owner] == x.shape:
            return NamedSharding(mesh, specs[owner])
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def _leaves(abstract: Any) -> list[tuple[str, Any]]:
    return [(_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(abstract)]


def _name(path: Any) -> str:
    # A Flax Variable is a node whose one child is called `value`; that segment is nobody's name.
    return tree.join(path).removesuffix(".value")


def _owner(name: str, of_model: dict[str, tuple[int, ...]]) -> str | None:
    """Returns the model's leaf whose name ends `name`, the longest first: optimizer.opt_state.0.mu.fc.kernel."""
    segments = name.split(".")
    tails = (".".join(segments[i:]) for i in range(len(segments)))
    return next((tail for tail in tails if tail in of_model), None)


def _spec(name: str, shape: tuple[int, ...], rule: Rule, mesh: Mesh) -> PartitionSpec:
    spec = rule if isinstance(rule, PartitionSpec) else rule(shape)
    if len(spec) > len(shape):
        raise UserError(f"sharding: {spec} has {len(spec)} entries, but {name!r} has the shape {shape}")
    for i, entry in enumerate(spec):
        axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
        for axis in axes:
            if axis not in mesh.shape:
                raise unknown("mesh axis", axis, mesh.axis_names)
        devices = math.prod(mesh.shape[axis] for axis in axes)
        if shape[i] % devices:
            raise UserError(
                f"sharding: dimension {i} of {name!r}, shape {shape}, is not divisible by the {devices} devices of "
                f"{' and '.join(axes)}"
            )
    return spec
