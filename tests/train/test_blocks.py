"""jaxvision.train.blocks: every combination of dtype, scan, remat, stochastic depth and accumulation, by shapes."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers.drop import DropPath
from jaxvision.models.layers.norm import BatchNorm
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import make_rules, state_shardings
from jaxvision.train.blocks import Blocks
from jaxvision.train.loss import make_loss
from jaxvision.train.state import abstract_state, create_state
from jaxvision.train.step import make_train_step


class Residual(nnx.Module):
    """Norm, linear layer, dropout and stochastic depth around a shortcut."""

    def __init__(self, rate: float, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.norm = BatchNorm(4, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.linear = nnx.Linear(4, 4, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.drop = nnx.Dropout(0.1, deterministic=True, rngs=rngs)
        self.drop_path = DropPath(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.drop_path(self.drop(self.linear(self.norm(x))))


class Small(Model):
    """Three residual blocks, of which the first has no stochastic depth and the others are equal. It traces fast."""

    classifier_names = ("head",)
    block_pattern = r"blocks\.\d+\."

    def __init__(self, *, drop_path: float, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.blocks = nnx.List([Residual(drop_path * i / 2, **types) for i in range(3)])
        self.stem, self.head = nnx.Linear(3, 4, **types), nnx.Linear(4, 3, **types)
        self.num_classes, self.num_features = 3, 4

    def forward_features(self, images: jax.Array) -> jax.Array:
        return self.run_blocks("blocks", self.blocks, self.stem(images))

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        return self.head(features.mean((1, 2)))


def assert_step_keeps_shapes(model: Model, *, scan: bool, remat: str | None, accumulate: int, side: int = 32) -> None:
    """Asserts that a train step traces, and that its new state has the shapes and dtypes of the old one."""
    mesh = make_mesh({"data": 1}, devices=jax.devices()[:1])
    graph, abstract = abstract_state(functools.partial(create_state, tx=optax.sgd(0.1)), lambda: model)
    step = make_train_step(
        graph,
        mesh=mesh,
        shardings=state_shardings(abstract, mesh),
        loss=make_loss(),
        prepare=lambda batch, step: (batch["image"], batch["label"]),
        learning_rate=0.1,
        accumulate=accumulate,
        blocks=Blocks(mesh, make_rules(mesh, ()), pattern=model.block_pattern, scan=scan, remat=remat),
    )
    batch = {
        "image": jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((4,), jnp.bool),
    }
    state, metrics = jax.eval_shape(step, abstract, batch)

    def kinds(tree: Any) -> list[Any]:
        return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    assert kinds(state) == kinds(abstract)
    assert {x.shape for x in jax.tree.leaves(metrics)} == {()}


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "drop_path"),
    [
        (jnp.float32, jnp.float32, 0.0),
        (jnp.float32, jnp.float32, 0.2),
        (jnp.bfloat16, jnp.float32, 0.0),
        (jnp.bfloat16, jnp.float32, 0.2),
        (jnp.bfloat16, jnp.bfloat16, 0.2),
    ],
)
def test_every_combination_traces(dtype, param_dtype, drop_path):
    for scan, remat, accumulate in itertools.product((False, True), (None, "nothing", "products"), (1, 2)):
        model = Small(drop_path=drop_path, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        assert_step_keeps_shapes(model, scan=scan, remat=remat, accumulate=accumulate, side=2)


#: A model of each family, with equal blocks.
FAMILIES = {
    "test_vit": {"image_size": 32, "depth": 3},
    "resnet10t": {"depths": (1, 1, 3, 1)},
    "resnetv2_18": {"depths": (1, 1, 3, 1)},
    "efficientnet_b0": {},
}


@pytest.mark.parametrize("name", [*list(FAMILIES)[:-1], pytest.param("efficientnet_b0", marks=pytest.mark.slow)])
def test_families_trace_in_bfloat16_with_scan_and_stochastic_depth(name):
    model = registry.build_abstract(name, num_classes=3, drop_path=0.2, dtype=jnp.bfloat16, **FAMILIES[name])
    assert_step_keeps_shapes(model, scan=True, remat=None, accumulate=2)


@pytest.mark.slow  # two hundred traces
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_every_combination_of_every_family_traces(name, dtype, drop_path):
    model = registry.build_abstract(name, num_classes=3, drop_path=drop_path, dtype=dtype, **FAMILIES[name])
    for scan, remat, accumulate in itertools.product((False, True), (None, "nothing", "products"), (1, 2)):
        assert_step_keeps_shapes(model, scan=scan, remat=remat, accumulate=accumulate)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_traced_rate_drops_like_a_constant_one(dtype):
    def dropped(x: jax.Array, rate: jax.Array | None) -> jax.Array:
        layer = DropPath(0.25, rngs=nnx.Rngs(3))
        layer.deterministic, layer.traced_rate = False, rate
        return layer(x)

    x = jnp.ones((64, 2), dtype)
    constant, traced = dropped(x, None), jax.jit(dropped)(x, jnp.float32(0.25))
    assert constant.dtype == traced.dtype == dtype
    np.testing.assert_array_equal(constant, traced)
    assert set(np.unique(constant.astype(jnp.float32))) == {0.0, float(jnp.asarray(1 / 0.75, dtype))}
