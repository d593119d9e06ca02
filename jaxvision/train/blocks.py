"""How a train step runs the blocks of a model: where weights are gathered, what is kept, one program or many.

A model computes its blocks as for one device. `Blocks` replaces the model's attribute `run_blocks` in training and
computes the same numbers, to rounding.
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
from jaxvision.models.layers.materialize import materialize_gradient
from jaxvision.parallel.mesh import batch_sharding
from jaxvision.parallel.rules import Rules, spec_of
from jaxvision.platform import compiled_for

#: What a block keeps for the backward pass, which recomputes the rest.
REMAT = {
    "products": "the results of matrix products, convolutions and cuDNN's attention",
    "nothing": "only the input of the block",
}
_PRODUCTS = ("dot_general", "conv_general_dilated", "dot_product_attention_fwd_wrapper")


@dataclass(frozen=True, eq=False)
class Blocks:
    """Runs a row of blocks one after the other, as `Model.run_blocks` of a model in training.

    Args:
      mesh: the devices.
      rules: from `jaxvision.parallel.rules.make_rules`.
      pattern: the model's `block_pattern`: a regular expression, anchored at the start, of the names of the parameters
        in blocks. ``""``: the model does not call `run_blocks`.
      remat: a key of `REMAT`. Rematerialization saves memory and costs time. None leaves the choice to the compiler,
        which recomputes what is cheap. With `scan` or along the mesh axis ``fsdp`` the compiler cannot choose, and None
        means ``"products"``.
      scan: compile one block and loop over it, where consecutive blocks are equal. The compile time and the size of
        the program then hardly grow with the depth.

    Raises:
      UserError: `remat` is unknown.

    Example:
      >>> import jaxvision
      >>> from jaxvision.parallel.mesh import make_mesh
      >>> from jaxvision.parallel.rules import make_rules
      >>> mesh = make_mesh()
      >>> model = jaxvision.create_model("test_vit", num_classes=3)
      >>> blocks = Blocks(mesh, make_rules(mesh, model.tensor_rules), pattern=model.block_pattern, scan=True)
      >>> training = nnx.view(model, run_blocks=blocks, deterministic=False)
      >>> training(jnp.zeros((8, 160, 160, 3))).shape
      (8, 3)
    """

    mesh: Mesh
    rules: Rules
    pattern: str = ""
    remat: str | None = None
    scan: bool = False

    def __post_init__(self) -> None:
        if self.remat not in (None, *REMAT):
            raise unknown_name_error("train.remat", str(self.remat), REMAT)

    @property
    def is_default(self) -> bool:
        """Whether the model's own `run_blocks` does the same."""
        return self.mesh.size == 1 and self.remat is None and not self.scan

    def __call__(self, name: str, blocks: Sequence[Any], x: jax.Array) -> jax.Array:
        """Returns `x` passed through each block in turn.

        Args:
          name: path of the attribute that holds the blocks, such as ``"blocks"``.
          blocks: modules. Their BatchNorm statistics and counters of random keys are updated in place.
          x: [b, ...].
        """
        for group in _groups_of_equal_blocks(blocks) if self.scan else ([i] for i in range(len(blocks))):
            prefix = f"{name}.{group[0]}"
            x = materialize_gradient(x)
            if len(group) > 1:
                x = self._scan(prefix, [blocks[i] for i in group], x)
            else:
                block = blocks[group[0]]
                graph, state = nnx.split(block)
                x, changed = self._checkpointed(prefix, graph)(state, x, ())
                nnx.update(block, changed)
        return x

    def gather(self, state: Any, prefix: str = "") -> Any:
        """Returns a state whose parameters are laid out for computing; their gradients are laid out as the moments.

        Args:
          state: of one block, or of the model. Of the model, the parameters in blocks stay as they are, because each
            block gathers its own.
          prefix: path of the block; ``""`` for the model.
        """

        def gather_leaf(name: str, x: Any) -> Any:
            in_block = not prefix and self.pattern and re.match(self.pattern, name)
            if not isinstance(x, nnx.Param | Frozen) or in_block:
                return x
            name = f"{prefix}.{name}" if prefix else name
            value = x.get_value()
            specs = (spec_of(table, name, value.shape) for table in (self.rules.used, self.rules.moments))
            used, moments = (NamedSharding(self.mesh, spec) for spec in specs)
            return x.replace(_gather(value, used, moments))

        return state if self.mesh.size == 1 else tree.map_named(gather_leaf, state)

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
            with compiled_for(self.mesh), jax.named_scope(prefix):
                x = block(x)
            for layer in _drop_paths(block):
                layer.traced_rate = None
            if self.mesh.size > 1:
                # Without the constraint XLA may move the images instead of gathering the weights.
                x = jax.lax.with_sharding_constraint(x, batch_sharding(self.mesh))
            return x, nnx.state(block, nnx.Not(nnx.Param))

        if self.remat is None and not in_scan and self.mesh.shape.get("fsdp", 1) == 1:
            return run  # the compiler chooses, and keeps little more than the products
        # The compiler cannot choose across a loop, and would keep the gathered weights of every layer until the end.
        policy = jax.checkpoint_policies.nothing_saveable if self.remat == "nothing" else _saves_products
        return jax.checkpoint(run, policy=policy, prevent_cse=not in_scan)


# A function with a custom derivative, such as a depthwise convolution, arrives here as one call.
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
    """Returns a copy of a block whose stochastic depths all have the same rate, and the rates they had."""
    same = nnx.merge(*nnx.split(block))
    rates = [layer.rate for layer in _drop_paths(same)]
    for layer in _drop_paths(same):
        layer.rate = float(layer.rate > 0)
    return same, rates


def _groups_of_equal_blocks(blocks: Sequence[Any]) -> list[list[int]]:
    """Returns the indices of the blocks; consecutive ones that differ only in the values of arrays form a group."""

    def kind(i: int) -> Any:
        graph, state = nnx.split(_without_rates(blocks[i])[0])
        return graph, [(x.shape, x.dtype) for x in jax.tree.leaves(state)]

    return [list(group) for _, group in itertools.groupby(range(len(blocks)), kind)]
