"""Arrays that a CPU writes to memory once: the numbers, the derivatives, and which programs contain the calls."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxvision import platform
from jaxvision.models.layers.materialize import materialize, materialize_gradient
from jaxvision.parallel.mesh import make_mesh

WEIGHTS = np.random.default_rng(0).standard_normal((5, 8, 8)).astype(np.float32) / 3
IMAGES = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)


def loss(weights: jax.Array, x: jax.Array, *, special: bool) -> jax.Array:
    """Returns a number computed by residual blocks, with or without the lever."""
    for w in weights:
        x = materialize_gradient(x) if special else x
        x = x + jnp.tanh(x @ w)
    return jnp.sum(x**2)


def grad(weights: jax.Array, x: jax.Array, *, special: bool) -> jax.Array:
    gradient = jax.grad(loss)(weights, x, special=special)
    return materialize(gradient) if special else gradient


def second(weights: jax.Array, x: jax.Array, *, special: bool) -> jax.Array:
    return jax.jvp(lambda w: grad(w, x, special=special), (weights,), (weights,))[1]


def forward(weights: jax.Array, x: jax.Array, *, special: bool) -> jax.Array:
    return jax.jvp(lambda x: loss(weights, x, special=special), (x,), (x,))[1]


def mapped(weights: jax.Array, x: jax.Array, *, special: bool) -> jax.Array:
    return jax.vmap(lambda x: grad(weights, x, special=special))(x[:, None])


def recomputed(weights: jax.Array, x: jax.Array, *, special: bool) -> jax.Array:
    return jax.grad(jax.checkpoint(lambda w: loss(w, x, special=special)))(weights)


@pytest.mark.parametrize("derivative", [loss, grad, second, forward, mapped, recomputed])
def test_the_numbers_are_those_of_the_plain_program(derivative):
    with jax.enable_x64(True):
        weights, x = WEIGHTS.astype(np.float64), IMAGES.astype(np.float64)
        got, wanted = (jax.jit(lambda w, x, s=s: derivative(w, x, special=s))(weights, x) for s in (True, False))
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())


def test_shardings_pass_through():
    """With devices that share the batch and the columns there are the collectives of the plain program, and no more."""
    mesh = make_mesh({"data": 4, "tensor": 2})
    shardings = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, None, "tensor"), ("data",))]
    results, collectives = [], []
    for special in (True, False):
        step = jax.jit(
            lambda w, x, s=special: grad(w, x, special=s), in_shardings=shardings, out_shardings=shardings[0]
        )
        text = step.lower(WEIGHTS, IMAGES).compile().as_text()
        collectives.append([text.count(f" {kind}(") for kind in ("all-reduce", "all-gather", "all-to-all")])
        results.append(step(WEIGHTS, IMAGES))
    assert collectives[0] == collectives[1]
    np.testing.assert_allclose(*results, rtol=1e-6, atol=1e-6)


def calls(platforms: tuple[str, ...]) -> int:
    traced = jax.jit(lambda w, x: grad(w, x, special=True)).trace(WEIGHTS, IMAGES)
    return traced.lower(lowering_platforms=platforms).as_text().count('inlineable = "false"')


def test_only_programs_for_cpus_have_the_calls(monkeypatch):
    assert calls(("cpu",)) > 0
    assert calls(("cuda",)) == calls(("tpu",)) == 0
    with platform.compiled_for("cpu"):
        assert calls(("cpu",)) > 0
    with platform.compiled_for("gpu"):
        assert calls(("cpu",)) == 0
    monkeypatch.setattr(platform, "_PLAIN", True)
    jax.clear_caches()
    assert calls(("cpu",)) == 0


def test_what_was_traced_for_one_platform_is_not_reused_for_another():
    @jax.jit
    def f(x):
        return platform.by_platform(x, cpu=lambda x: x + 1, gpu=lambda x: x + 2, default=lambda x: x + 3)

    got = [int(f(0))]
    for name in ("cpu", "gpu", "tpu"):
        with platform.compiled_for(name):
            got.append(int(f(0)))
    assert got == [1, 1, 2, 3]
