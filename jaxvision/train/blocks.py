"""How a train step runs the blocks of a model: where weights are gathered, what is kept, one program or many.

A model's code says what a block computes, for one device. What is said here holds for a row of blocks in training, and
a model takes it up by its attribute `run_blocks`; the numbers are the same, to rounding.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxvision import tree
from jaxvision.errors import unknown_name_error
from jaxvision.models.layers.drop import DropPath
from jaxvision.models.layers.frozen import Frozen
from jaxvision.parallel.mesh import batch_sharding
from jaxvision.parallel.rules import Rules, spec_of
from jaxvision.platform import compiled_for

#: What a block keeps for the backward pass; the rest is computed a second time there.
REMAT = {
    "products": "the results of matrix products and convolutions",
    "nothing": "only what goes into the block",
}
_PRODUCTS = ("dot_general", "conv_general_dilated")
_IN_BLOCKS = re.compile(r"(blocks|layer\d+|stages\.\d+\.blocks)\.\d+\.")


@dataclass(frozen=True, eq=False)
class Blocks:
    """Runs a row of blocks, one after the other: `Model.run_blocks` of a model in training.

    Args:
      mesh: the devices.
      rules: from `jaxvision.parallel.rules.make_rules`.
      remat: a key of `REMAT`: rematerialization, which costs time and saves memory. None leaves it to the compiler,
        which works over what is cheap a second time; with `scan` or fsdp, where it cannot, None is "products".
      scan: compile one block and loop over it, where the blocks of a row are alike: the time to compile and the size of
        the program hardly grow with the depth.

    Raises:
      UserError: no such `remat`.

    Example:
      >>> import jaxvision
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> from jaxvision.parallel.rules import make_rules
      >>> mesh = make_mesh()
      >>> model = jaxvision.create_model("test_vit", num_classes=3)
      >>> training = nnx.view(model, run_blocks=Blocks(mesh, make_rules(mesh), scan=True), deterministic=False)
      >>> training(jnp.zeros((8, 160, 160, 3))).shape
      (8, 3)
    """

    mesh: Mesh
    rules: Rules
    remat: str | None = None
    scan: bool = False

    def __post_init__(self) -> None:
        if self.remat not in (None, *REMAT):
            raise unknown_name_error("remat", str(self.remat), REMAT)

    @property
    def plain(self) -> bool:
        """Whether the model may as well run its blocks itself."""
        return self.mesh.size == 1 and self.remat is None and not self.scan

    def __call__(self, name: str, blocks: Sequence[Any], x: jax.Array) -> jax.Array:
        """Returns `x` passed through each block in turn.

        Args:
          name: of the attribute that holds them, such as ``"blocks"``.
          blocks: modules. What they change (BatchNorm statistics, counters of random keys) is changed in them.
          x: [b, ...].
        """
        for alike in _alike(blocks) if self.scan else ([i] for i in range(len(blocks))):
            prefix = f"{name}.{alike[0]}"
            if len(alike) > 1:
                x = self._scan(prefix, [blocks[i] for i in alike], x)
            else:
                block = blocks[alike[0]]
                graph, state = nnx.split(block)
                x, changed = self._checkpointed(prefix, graph)(state, x, ())
                nnx.update(block, changed)
        return x

    def gather(self, state: Any, prefix: str = "") -> Any:
        """Returns a state whose parameters lie as a layer computes with them; their gradients lie as the optimizer's.

        Args:
          state: of a block, or of the model: then what is in blocks is left to them.
          prefix: name of the block.
        """

        def one(name: str, x: Any) -> Any:
            if not isinstance(x, nnx.Param | Frozen) or (not prefix and _IN_BLOCKS.match(name)):
                return x
            name = f"{prefix}.{name}" if prefix else name
            value = x.get_value()
            places = (spec_of(table, name, value.shape) for table in (self.rules.used, self.rules.moments))
            used, moments = (NamedSharding(self.mesh, spec) for spec in places)
            return x.replace(_gather(value, used, moments))

        return state if self.mesh.size == 1 else tree.map_named(one, state)

    def _scan(self, prefix: str, blocks: Sequence[Any], x: jax.Array) -> jax.Array:
        same, rates = zip(*(_without_rates(block) for block in blocks), strict=True)
        graphs, states = zip(*(nnx.split(block) for block in same), strict=True)
        run = self._checkpointed(prefix, graphs[0], in_scan=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        x, changed = jax.lax.scan(lambda x, each: run(each[0], x, each[1]), x, (stacked, jnp.asarray(rates)))
        for i, block in enumerate(blocks):
            nnx.update(block, jax.tree.map(lambda leaf, i=i: leaf[i], changed))
        return x

    def _checkpointed(self, prefix: str, graph: Any, *, in_scan: bool = False) -> Callable[..., Any]:
        def run(state: Any, x: jax.Array, rates: Any) -> tuple[jax.Array, Any]:
            block = nnx.merge(graph, self.gather(state, prefix), copy=True)
            for layer, rate in zip(_drop_paths(block), rates, strict=bool(len(rates))):
                layer.traced_rate = rate
            with compiled_for(self.mesh.devices.flat[0].platform):
                x = block(x)
            for layer in _drop_paths(block):
                layer.traced_rate = None
            if self.mesh.size > 1:
                # Else XLA may rather move the images than gather the weights.
                x = jax.lax.with_sharding_constraint(x, batch_sharding(self.mesh))
            return x, nnx.state(block, nnx.Not(nnx.Param))

        if self.remat is None and not in_scan and self.mesh.shape.get("fsdp", 1) == 1:
            return run  # the compiler decides; it keeps little more than the products
        # It cannot decide across a loop; of what is gathered it would keep every layer's whole weights till the end.
        policy = jax.checkpoint_policies.nothing_saveable if self.remat == "nothing" else _saves_products
        return jax.checkpoint(run, policy=policy, prevent_cse=not in_scan)


# A function with a derivative of its own, such as a depthwise convolution, is seen as one call.
def _saves_products(primitive: Any, *_: Any, call_jaxpr: Any = None, **__: Any) -> bool:
    return primitive.name in _PRODUCTS or any(name in str(call_jaxpr) for name in _PRODUCTS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, used: NamedSharding, moments: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, used)


def _gather_forward(x: jax.Array, used: NamedSharding, moments: NamedSharding) -> tuple[jax.Array, None]:
    return _gather(x, used, moments), None


def _gather_backward(used: NamedSharding, moments: NamedSharding, _: None, dy: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(dy, moments),)


_gather.defvjp(_gather_forward, _gather_backward)


def _drop_paths(block: Any) -> list[DropPath]:
    return [layer for _, layer in nnx.iter_modules(block) if isinstance(layer, DropPath)]


def _without_rates(block: Any) -> tuple[Any, list[float]]:
    """Returns a copy of a block in which every stochastic depth has the same rate, and the rates that it had."""
    same = nnx.merge(*nnx.split(block))
    rates = [layer.rate for layer in _drop_paths(same)]
    for layer in _drop_paths(same):
        layer.rate = float(layer.rate > 0)
    return same, rates


def _alike(blocks: Sequence[Any]) -> list[list[int]]:
    """Returns the numbers of the blocks, those in a row together that differ in what they hold only."""

    def kind(i: int) -> Any:
        graph, state = nnx.split(_without_rates(blocks[i])[0])
        return graph, [(x.shape, x.dtype) for x in jax.tree.leaves(state)]

    return [list(group) for _, group in itertools.groupby(range(len(blocks)), kind)]
