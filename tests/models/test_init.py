"""jaxvision.models.layers.init: distributions, and equal numbers whether traced or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvision.models import registry
from jaxvision.models.layers import init
from jaxvision.models.layers.deferred import deferred
from jaxvision.parallel.mesh import make_mesh


@pytest.mark.parametrize("shape", [(3,), (2**16,), (3, 3, 90, 100)])
@pytest.mark.parametrize("make", [init.normal, init.uniform])
def test_values_do_not_depend_on_jit_or_dtype(make, shape):
    key = jax.random.key(1)
    values = make(0.5)(key, shape)
    assert values.shape == shape
    np.testing.assert_array_equal(values, jax.jit(lambda key: make(0.5)(key, shape))(key))
    half = make(0.5)(key, shape, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, values.astype(jnp.bfloat16))


def test_blocks_are_not_repeated():
    values = np.asarray(init.normal(1.0)(jax.random.key(0), (3 * 2**16,)))
    # Of 2^23 possible values few coincide by chance. A repeated block would leave two thirds of the values unique.
    assert len(np.unique(values)) > 0.9 * len(values)
    assert np.abs(np.corrcoef(values.reshape(3, -1)) - np.eye(3)).max() < 0.02


def test_distributions():
    shape, key = (3, 3, 100, 200), jax.random.key(0)
    for values, deviation in [
        (init.normal(0.02)(key, shape), 0.02),
        (init.uniform(0.3)(key, shape), 0.3 / np.sqrt(3)),
        (init.he_normal(key, shape), np.sqrt(2 / (9 * 200))),
        (init.torch_default(key, shape), (9 * 100) ** -0.5 / np.sqrt(3)),
        (init.torch_default_bias(16)(key, (10000,)), 0.25 / np.sqrt(3)),
    ]:
        np.testing.assert_allclose(jnp.std(values), deviation, rtol=0.01)
        np.testing.assert_allclose(jnp.mean(values) / deviation, 0, atol=0.03)
    normal = np.sort(np.asarray(init.normal(1.0)(key, (10001,))))
    quantiles = normal[[228, 1587, 5000, 8413, 9772]]  # at -2, -1, 0, 1, 2 standard deviations
    np.testing.assert_allclose(quantiles, [-2, -1, 0, 1, 2], atol=0.1)


def test_the_seed_determines_the_weights_and_layers_differ():
    a, b, c = (registry.build("test_resnet", rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.fc.kernel[...], b.fc.kernel[...])
    assert (a.fc.kernel[...] != c.fc.kernel[...]).all()
    assert (a.layer2[0].conv2.kernel[...] != a.layer3[0].conv2.kernel[...]).all()


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_efficientnet"])
def test_streams_match_flax(architecture: str):
    options = {"dropout": 0.1, "drop_path": 0.1}
    ours = registry.build(architecture, rngs=init.streams(3, 4), **options)
    flax = registry.build(architecture, rngs=nnx.Rngs(params=3, dropout=4), **options)
    assert nnx.graphdef(ours) == nnx.graphdef(flax)
    for a, b in zip(jax.tree.leaves(nnx.state(ours)), jax.tree.leaves(nnx.state(flax)), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("architecture", ["test_resnet", "resnet50_gn", "test_vit", "test_efficientnet"])
def test_build_abstract_matches_eval_shape(architecture: str):
    options = {"dropout": 0.1, "drop_path": 0.1}
    quick = registry.build_abstract(architecture, **options)
    traced = nnx.eval_shape(lambda: registry.build(architecture, rngs=init.streams(0, 1), **options))
    assert nnx.graphdef(quick) == nnx.graphdef(traced)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, nnx.state(quick), nnx.state(traced)))
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(nnx.state(quick)))


@pytest.mark.parametrize("architecture", ["test_resnet", "resnetv2_18", "test_vit", "test_efficientnet"])
def test_deferred_arrays_hold_nothing_and_equal_those_drawn_at_once(architecture: str):
    options = {"num_classes": 3, "dropout": 0.1, "drop_path": 0.1}
    before = {id(x) for x in jax.live_arrays()}
    with deferred():
        later = registry.build(architecture, rngs=init.streams(0, 1), **options)
    assert all(x.nbytes <= 8 for x in jax.live_arrays() if id(x) not in before)  # keys and counters
    once = registry.build(architecture, rngs=init.streams(0, 1), **options)
    assert nnx.graphdef(later) == nnx.graphdef(once)
    for a, b in zip(
        jax.tree.leaves(nnx.state(later, nnx.Param)), jax.tree.leaves(nnx.state(once, nnx.Param)), strict=True
    ):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight fake devices of conftest.py")
def test_a_deferred_array_is_placed_in_its_sharding():
    sharding = jax.sharding.NamedSharding(make_mesh({"data": 2, "fsdp": 4}), jax.sharding.PartitionSpec(None, "fsdp"))
    make = init.halves(init.normal(0.1), init.constant(2.0))
    with deferred():
        later = make(jax.random.key(0), (3, 90_000), jnp.bfloat16)
    placed = later.place(sharding)
    assert placed.sharding == sharding
    expected = make(jax.random.key(0), (3, 90_000), jnp.bfloat16)
    np.testing.assert_array_equal(placed, expected)


def test_a_model_of_your_own_may_compute_with_its_initial_values():
    @registry.register_model
    def doubled(*, num_classes: int = 3, in_channels: int = 3, image_size: int = 32, rngs: nnx.Rngs):
        size = {"num_classes": num_classes, "in_channels": in_channels}
        model = registry.build("test_resnet", **size, rngs=rngs)
        model.fc.kernel[...] = 2 * jnp.square(init.normal(0.1)(rngs.params(), model.fc.kernel.shape))
        return model

    try:
        with deferred():
            later = registry.build("doubled", rngs=init.streams(0, 1))
        once = registry.build("doubled", rngs=init.streams(0, 1))
        np.testing.assert_array_equal(later.fc.kernel[...], once.fc.kernel[...])
    finally:
        registry.unregister_model("doubled")


def test_build_abstract_allocates_no_arrays():  # benchmarks/start.py says how quick they are
    before = jax.live_arrays()  # kept alive, so that none of them is collected in between
    model = registry.build_abstract("resnetrs420")
    assert {id(x) for x in jax.live_arrays()} == {id(x) for x in before}
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) > 190e6
