"""jaxvision.train.ema against values computed by hand and timm's average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import tiny
from support.reference import import_timm

from jaxvision.errors import UserError
from jaxvision.models.layers.frozen import Frozen
from jaxvision.train.ema import EMA


def linear(value: float, dtype: object = jnp.float32) -> nnx.Linear:
    return nnx.Linear(1, 1, kernel_init=nnx.initializers.constant(value), param_dtype=dtype, rngs=nnx.Rngs(0))


def averages(values: list[float], **options: object) -> list[float]:
    """Returns the average after each of the values that follow the first."""
    ema = EMA(linear(values[0]), **options)
    result = []
    for t, value in enumerate(values[1:]):
        ema.update(linear(value), t)
        result.append(float(ema.params["kernel"][...][0, 0]))
    return result


def test_by_hand() -> None:
    # 0.75 * 4 + 0.25 * 8 = 5;  0.75 * 5 + 0.25 * 1 = 4;  0.75 * 4 + 0.25 * 0 = 3
    assert averages([4, 8, 1, 0], decay=0.75, warmup=False) == [5, 4, 3]


def test_warmup_by_hand() -> None:
    """Decays 1 - 1, 1 - 2^(-2/3), 1 - 3^(-2/3), ..., never above `decay`."""
    decays = [0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3), 1 - 4 ** (-2 / 3), 0.65]
    expected, average = [], 4.0
    for decay, value in zip(decays, [8, 1, 0, 5, 2], strict=True):
        average = decay * average + (1 - decay) * value
        expected.append(average)
    np.testing.assert_allclose(averages([4, 8, 1, 0, 5, 2], decay=0.65, warmup=True), expected, rtol=1e-6)
    ema = EMA(linear(0), decay=0.9999, warmup=True)
    np.testing.assert_allclose([float(ema.decay_at(t)) for t in (999, 31_622)], [0.99, 0.999], rtol=1e-5)


def test_an_average_longer_than_the_run_is_trained() -> None:
    """100 steps from 0 to 1 with a decay of 0.9999: the average covers about the last third, by default."""
    values = [t / 100 for t in range(101)]
    average = 0.0
    for t, value in enumerate(values[1:]):
        decay = 1 - (1 + t) ** (-2 / 3)
        average = decay * average + (1 - decay) * value
    got = averages(values, decay=0.9999)[-1]
    np.testing.assert_allclose(got, average, rtol=1e-5)
    assert got > 0.7
    assert averages(values, decay=0.9999, warmup=False)[-1] < 0.01


@pytest.mark.timm
@pytest.mark.parametrize("warmup", [False, True])
def test_equals_timm(warmup: bool) -> None:
    import_timm()
    import torch
    from timm.utils import ModelEmaV3

    model = torch.nn.Linear(1, 1)
    values = [4.0, 8.0, 1.0, -3.0, 5.0, 2.0]
    with torch.no_grad():
        model.weight.fill_(values[0])
    timms, expected = ModelEmaV3(model, decay=0.6, use_warmup=warmup), []
    for t, value in enumerate(values[1:]):
        with torch.no_grad():
            model.weight.fill_(value)
        # timm counts updates from 1, and copies the model at the first, with or without warm-up.
        timms.update(model, step=t + 1 if warmup else None)
        expected.append(timms.module.weight.item())
    np.testing.assert_allclose(averages(values, decay=0.6, warmup=warmup), expected, rtol=2e-6)


def test_batch_statistics_are_averaged_and_frozen_leaves_are_not_kept() -> None:
    model = tiny.build(dropout=0.5)()
    model.fc.bias = Frozen(jnp.full(4, 3.0))
    ema = EMA(model, decay=0.5, warmup=False)
    kept = set(tiny.arrays(nnx.state(ema)))
    assert kept == {f"params.{x}" for x in ("conv.kernel", "bn.scale", "bn.bias", "bn.mean", "bn.var", "fc.kernel")}
    model.bn.mean[...] = jnp.full(8, 2.0)
    model.fc.bias[...] = jnp.full(4, 5.0)
    ema.update(model, 0)
    averaged = ema.apply_to(model)
    assert (averaged.bn.mean[...] == 1).all()
    assert (averaged.fc.bias[...] == 5).all()  # leaves that are not averaged are the model's own
    assert (model.bn.mean[...] == 2).all()  # the model itself does not change
    averaged(jnp.zeros((1, 4, 4, 3)))


def test_a_half_precision_model_is_averaged_in_float32() -> None:
    """0.999 × 1 + 0.001 × 1.5 = 1.0005 rounds to 1 in bfloat16, where the average would never change."""
    ema = EMA(linear(1, jnp.bfloat16), decay=0.999, warmup=False)
    for t in range(3):
        ema.update(linear(1.5, jnp.bfloat16), t)
    np.testing.assert_allclose(ema.params["kernel"][...], [[1.5 - 0.5 * 0.999**3]], rtol=1e-6)
    assert ema.apply_to(linear(1, jnp.bfloat16)).kernel.dtype == jnp.bfloat16


def test_inside_jit_with_a_traced_count() -> None:
    graph, state = nnx.split(EMA(linear(4), decay=0.9, warmup=True))

    @jax.jit
    def update(state: nnx.State, value: jax.Array, t: jax.Array) -> nnx.State:
        ema, model = nnx.merge(graph, state), linear(0)
        model.kernel[...] = value
        ema.update(model, t)
        return nnx.state(ema)

    for t, value in enumerate([8.0, 1.0, 0.0]):
        state = update(state, jnp.full((1, 1), value), t)
    expected = averages([4, 8, 1, 0], decay=0.9, warmup=True)[-1]
    np.testing.assert_allclose(state["params"]["kernel"][...], [[expected]], rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_errors(decay: float) -> None:
    with pytest.raises(UserError, match=rf"EMA: got decay={decay}, expected a number in \[0, 1\)"):
        EMA(linear(0), decay=decay)
