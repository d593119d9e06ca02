"""jaxvision.models.layers.norm.BatchNorm compared with PyTorch's and with values computed by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import tiny
from support.reference import import_timm

from jaxvision.errors import UserError
from jaxvision.models.layers.mode import train_view
from jaxvision.models.layers.norm import BatchNorm


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_batch_norm_in_evaluation_matches_the_formula(dtype):
    rng = np.random.default_rng(0)
    norm = BatchNorm(7, epsilon=1e-3, dtype=dtype, rngs=nnx.Rngs(0))
    scale, bias, mean = rng.normal(size=(3, 7))
    var = rng.uniform(0.5, 2, 7)
    for name, value in (("scale", scale), ("bias", bias), ("mean", mean), ("var", var)):
        getattr(norm, name)[...] = jnp.asarray(value, jnp.float32)
    x = rng.normal(size=(2, 3, 3, 7)).astype(np.float32)
    exact = (x - mean) / np.sqrt(var + 1e-3) * scale + bias
    y = jax.jit(lambda norm, x: norm(x))(norm, x)
    assert y.dtype == (dtype or jnp.float32)
    tolerance = 1e-6 if dtype is None else 2**-7  # three roundings to eight bits: scale, bias, and the result
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("given", [jnp.bfloat16, jnp.float32])
def test_the_dtype_is_the_given_one_or_that_of_input_and_parameters(given, param_dtype, dtype):
    norm = BatchNorm(3, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    wanted = dtype or jnp.promote_types(given, param_dtype)
    for mode in (norm, train_view(norm)):
        assert mode(jnp.arange(12.0).reshape(4, 3).astype(given)).dtype == wanted
    assert norm.mean.dtype == norm.var.dtype == jnp.float32


def test_running_statistics_by_hand():
    norm = nnx.view(BatchNorm(1, momentum=0.75, epsilon=0.0, rngs=nnx.Rngs(0)), use_running_average=False)
    y = norm(jnp.array([[0.0], [4.0]]))  # mean 2, variance (4 + 4) / 2, unbiased variance (4 + 4) / 1
    np.testing.assert_array_equal(y, [[-1], [1]])
    assert (norm.mean[0], norm.var[0]) == (0.25 * 2, 0.75 * 1 + 0.25 * 8)


def test_running_statistics_of_groups_by_hand():
    """Each group has its own unbiased variance; the running one gets their mean."""
    norm = train_view(BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0)), batch_norm_group=2)
    norm(jnp.array([0.0, 4.0, 10.0, 16.0]).reshape(4, 1))  # (0, 4): mean 2, variance 8; (10, 16): mean 13, variance 18
    np.testing.assert_allclose((norm.mean[0], norm.var[0]), (0.5 * 7.5, 0.5 + 0.5 * 13), rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_number_of_values_is_that_of_all_devices(devices):
    run = tiny.Run(tiny.build(), optax.sgd(0.0), devices=devices)
    conv, images = tiny.build()().conv, tiny.prepare(tiny.batch())[0]
    wanted = 0.9 + 0.1 * np.var(np.asarray(conv(images), np.float64), axis=(0, 1, 2), ddof=1)
    run.train(1)
    np.testing.assert_allclose(run.arrays()["model.bn.var"], wanted, rtol=1e-5)


def test_one_value_per_channel_is_an_error_in_training_as_in_pytorch():
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    message = r"BatchNorm: got one value per channel, for the shape \({}\), expected more in training"
    with pytest.raises(UserError, match=message.format("1, 1, 1, 3")):
        train_view(norm)(jnp.ones((1, 1, 1, 3)))
    with pytest.raises(UserError, match=message.format("4, 3")):
        train_view(norm, batch_norm_group=1)(jnp.ones((4, 3)))
    assert norm(jnp.ones((1, 1, 1, 3))).shape == (1, 1, 1, 3)


@pytest.mark.timm
@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (4, 3, 2, 5), (6, 5)])
def test_matches_pytorch_over_several_steps(shape):
    """Outputs, gradients and running statistics of three steps, then the evaluation."""
    import_timm()
    import torch

    ours = BatchNorm(5, epsilon=1e-3, momentum=0.9, rngs=nnx.Rngs(0))
    theirs = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(5, eps=1e-3, momentum=0.1)
    rng = np.random.default_rng(0)

    def as_torch(x):
        return torch.from_numpy(np.moveaxis(x, -1, 1).copy())

    for _ in range(3):
        x = rng.normal(2, 3, shape).astype(np.float32)
        weight = rng.normal(size=shape).astype(np.float32)
        tensor = as_torch(x).requires_grad_()
        y = theirs(tensor)
        (y * as_torch(weight)).sum().backward()
        training = train_view(ours)
        got = training(x)
        structure, rest = nnx.split(training)
        gradient = jax.grad(lambda x, s=structure, r=rest, w=weight: jnp.sum(nnx.merge(s, r, copy=True)(x) * w))(x)
        np.testing.assert_allclose(got, np.moveaxis(y.detach().numpy(), 1, -1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient, np.moveaxis(tensor.grad.numpy(), 1, -1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-6)
        np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-6)
    wanted = theirs.eval()(as_torch(x)).detach().numpy()
    np.testing.assert_allclose(ours(x), np.moveaxis(wanted, 1, -1), rtol=1e-5, atol=1e-5)
