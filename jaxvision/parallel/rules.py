"""Where each array lies: an ordered table (pattern, PartitionSpec) over the names of the model's leaves.

The table speaks of the model only. What belongs to a parameter (its moments in the optimizer, its moving average) lies
where the parameter lies, whatever the optimizer calls it; everything else (counters, random keys) is on every device.
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

#: A row's value: a spec, or a function from a leaf's shape to its spec.
Rule = PartitionSpec | Callable[[tuple[int, ...]], PartitionSpec]

#: Data parallelism: every device holds everything.
REPLICATED: tree.Table[Rule] = ((r".*", PartitionSpec()),)


#: How the two layers of a branch are computed by the devices along the axis "tensor": each of them has some of the
#: hidden channels, so nothing is sent between the first layer and the second, and one sum after it (Shoeybi et al.,
#: "Megatron-LM", https://arxiv.org/abs/1909.08053). What no row names is computed by all of them alike.
TENSOR: tree.Table[PartitionSpec] = (
    # ViT: the MLP's hidden layer, and what attention gives by heads
    (r".*\bmlp\.(fc1|fc1_g|fc1_x)\.kernel", PartitionSpec(None, "tensor")),
    (r".*\bmlp\.(fc1|fc1_g|fc1_x)\.bias", PartitionSpec("tensor")),
    (r".*\b(mlp\.fc2|attn\.proj)\.kernel", PartitionSpec("tensor")),
    # ResNet: between a block's first convolution and its second
    (r"layer\d+\.\d+\.conv1\.kernel", PartitionSpec(None, None, None, "tensor")),
    (r"layer\d+\.\d+\.bn1\.", PartitionSpec("tensor")),
    (r"layer\d+\.\d+\.conv2\.kernel", PartitionSpec(None, None, "tensor")),
    # EfficientNet: the expanded channels, squeeze and excitation among them. The first stage does not expand.
    (r"blocks\.0\.", PartitionSpec()),
    (r"blocks\.\d+\.\d+\.conv_(pw|dw|exp)\.kernel", PartitionSpec(None, None, None, "tensor")),
    (r"blocks\.\d+\.\d+\.(bn1|bn2)\.", PartitionSpec("tensor")),
    (r"blocks\.\d+\.\d+\.(conv_pwl|se\.conv_reduce)\.kernel", PartitionSpec(None, None, "tensor")),
    (r"blocks\.\d+\.\d+\.se\.conv_expand\.kernel", PartitionSpec(None, None, None, "tensor")),
    (r"blocks\.\d+\.\d+\.se\.conv_expand\.bias", PartitionSpec("tensor")),
    (r".*", PartitionSpec()),
)


_WHOLE = PartitionSpec()


def largest_axis(
    mesh_axis: str, mesh: Mesh, *, over: Rule = _WHOLE, min_size: int = 2**16
) -> Callable[[tuple[int, ...]], PartitionSpec]:
    """Returns the rule of fully sharded data parallelism (FSDP) for any leaf, whatever its rank.

    Args:
      mesh_axis: the axis of the mesh to spread over; one that the mesh does not have changes nothing.
      mesh: tells how many devices that are.
      over: how the leaf is split already, along other axes of the mesh.
      min_size: leaves with fewer elements stay as they are: gathering them costs more than keeping them.

    Returns:
      A function from shape to spec: of the dimensions that are not split yet, the largest that the devices divide is;
      where there is none, the leaf stays as it is. The last of equals is taken: output channels before input channels.

    Example:
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> rule = largest_axis("data", make_mesh(), min_size=1)
      >>> tuple(rule((3, 3, 64, 128)))
      (None, None, None, 'data')
    """
    devices = mesh.shape.get(mesh_axis, 1)

    def rule(shape: tuple[int, ...]) -> PartitionSpec:
        spec = _fitting(over, shape, mesh)
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
    """Three tables over the names of a model's leaves, from the axes of a mesh.

    Attributes:
      used: how a layer computes with them; along "tensor" only.
      stored: how they lie between steps; along "fsdp", too.
      moments: how the gradient, the optimizer's moments and the moving average lie; with ZeRO-1 along "data", too.
    """

    used: tree.Table[Rule]
    stored: tree.Table[Rule]
    moments: tree.Table[Rule]


def make_rules(mesh: Mesh, *, zero1: bool = False, min_size: int = 2**16) -> Rules:
    """Returns where everything lies, from the axes of the mesh alone.

    Along ``data`` everything is on every device; along ``fsdp`` each array is split (fully sharded data parallelism),
    and a layer gathers what it needs when it needs it; along ``tensor`` the devices share its work (`TENSOR`).

    Args:
      mesh: the devices.
      zero1: split the optimizer's moments and the moving average over ``data``, too (ZeRO-1; Rajbhandari et al.,
        "ZeRO", https://arxiv.org/abs/1910.02054). Parameters stay whole; each device updates its part of them, and
        all gather the result.
      min_size: arrays with fewer elements are not split along ``fsdp`` and ``data``: gathering them costs more than
        keeping them.

    Example:
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> rules = make_rules(make_mesh({"data": 1, "fsdp": -1}), min_size=1)
      >>> shapes = {"model": {"fc": {"kernel": jax.ShapeDtypeStruct((8, 16), "float32")}}}
      >>> tuple(state_shardings(shapes, make_mesh({"fsdp": -1}), rules.stored)["model"]["fc"]["kernel"].spec)
      (None, 'fsdp')
    """

    def over(table: tree.Table[Rule], axis: str) -> tree.Table[Rule]:
        return tuple((pattern, largest_axis(axis, mesh, over=rule, min_size=min_size)) for pattern, rule in table)

    table = TENSOR if mesh.shape.get("tensor", 1) > 1 else REPLICATED
    used = tuple((pattern, functools.partial(_fitting, rule, mesh=mesh)) for pattern, rule in table)
    stored = over(used, "fsdp")
    return Rules(used, stored, over(stored, "data") if zero1 else stored)


def _fitting(rule: Rule, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the spec of a leaf, whole where its shape cannot be split like that."""
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

    The one tree serves initialize, step and restore.

    Args:
      abstract: the state's shapes, as `jaxvision.train.state.abstract_state` gives them; the model's
        leaves are those whose names start with ``model.``.
      mesh: the devices.
      table: ordered rows (pattern, spec or function from shape to spec) over the model's names
        without that prefix, such as ``blocks.0.attn.qkv.kernel``. The first match wins.
      moments: the same for what belongs to a parameter; None: `table`.
      unused_ok: accept rows that match nothing, as those for other families do.

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
    rules = tree.match(list(of_model), table, unused_ok=unused_ok, what="sharding")
    specs = {name: _spec(name, shape, rules[name], mesh) for name, shape in of_model.items()}
    others = specs
    if moments is not None:
        rules = tree.match(list(of_model), moments, unused_ok=unused_ok, what="sharding")
        others = {name: _spec(name, shape, rules[name], mesh) for name, shape in of_model.items()}

    def sharding(path: Any, x: Any) -> NamedSharding:
        name = _name(path)
        owner = _owner(name, of_model)
        # The shape has to agree, too: a factored moment (Adafactor) is not laid out as its parameter.
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
                raise unknown_name_error("mesh axis", axis, mesh.axis_names)
        devices = math.prod(mesh.shape[axis] for axis in axes)
        if shape[i] % devices:
            raise UserError(
                f"sharding: dimension {i} of {name!r}, shape {shape}, is not divisible by the {devices} devices of "
                f"{' and '.join(axes)}"
            )
    return spec


#: Kinds of bytes that are there whatever the batch.
STATE = ("parameters", "statistics", "optimizer", "ema", "other")


def state_bytes(abstract: Any, shardings: Any) -> dict[str, int]:
    """Returns the bytes that one device holds of a training state, by kind, without the padding of tiles.

    Args:
      abstract: from `jaxvision.train.state.abstract_state`.
      shardings: from `jaxvision.parallel.rules.state_shardings`.

    Returns:
      ``parameters`` (frozen ones, too), ``statistics`` (of BatchNorm), ``optimizer``, ``ema`` and ``other`` (random
      keys).
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
