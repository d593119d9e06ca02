"""Derivatives of each mode and order: the CPU's depthwise convolution, compared with XLA's, and whole convnets."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from support.against_timm import assert_close, random_model
from support.kinds import KINDS

from jaxvision.models import registry
from jaxvision.models.layers.convolve import convolve, same_padding
from jaxvision.models.layers.mode import train_view
from jaxvision.models.layers.norm import _normalize


def xla(x, kernel, *, stride, padding, groups):
    """Returns XLA's convolution, the reference for `convolve`."""
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=dims, feature_group_count=groups
    )


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def forward_over_reverse(f, primals, tangents):
    """Returns the product of the Hessian of `f` with a vector."""
    return jax.jvp(jax.grad(f, argnums=(0, 1)), primals, tangents)[1]


def reverse_over_reverse(f, primals, tangents):
    """The same product, as the gradient of a gradient."""

    def along(primals):
        return sum(jnp.vdot(g, t) for g, t in zip(jax.grad(f, argnums=(0, 1))(*primals), tangents, strict=True))

    return jax.grad(along)(primals)


def reverse_over_forward(f, primals, tangents):
    """The same product, as the gradient of a directional derivative."""
    return jax.grad(lambda primals: jax.jvp(f, primals, tangents)[1])(primals)


@pytest.mark.parametrize(("k", "stride", "kind"), [(3, 1, "torch"), (5, 2, "torch"), (3, 2, "same")])
def test_depthwise_in_forward_mode_and_twice_matches_xla(k, stride, kind):
    x, kernel = noise(2, 9, 6, 4), noise(k, k, 1, 4, seed=1)
    dx, dkernel = noise(*x.shape, seed=2), noise(*kernel.shape, seed=3)
    padding = same_padding(x.shape[1:3], k, stride) if kind == "same" else ((k // 2, k // 2),) * 2
    options = {"stride": stride, "padding": padding, "groups": 4}

    @jax.jit
    def both():
        ours, theirs = (functools.partial(f, **options) for f in (convolve, xla))
        loss, expected = (lambda x, kernel, f=f: jnp.sum(jnp.sin(f(x, kernel))) for f in (ours, theirs))
        vector = reverse_over_reverse(expected, (x, kernel), (dx, dkernel))
        pairs = [
            (jax.jvp(ours, (x, kernel), (dx, dkernel)), jax.jvp(theirs, (x, kernel), (dx, dkernel))),
            (
                jax.jvp(lambda k: ours(x, k), (kernel,), (dkernel,)),
                jax.jvp(lambda k: theirs(x, k), (kernel,), (dkernel,)),
            ),
            (jax.jvp(lambda x: ours(x, kernel), (x,), (dx,)), jax.jvp(lambda x: theirs(x, kernel), (x,), (dx,))),
        ]
        modes = (forward_over_reverse, reverse_over_reverse, reverse_over_forward)
        return pairs + [(mode(loss, (x, kernel), (dx, dkernel)), vector) for mode in modes]

    for got, wanted in both():
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b, 1e-5)


def test_depthwise_under_vmap_in_both_orders_matches_xla():
    """Gradients for each image, with and without a kernel for each, and the gradient of a mapped loss."""
    x, kernels = noise(3, 5, 5, 4), noise(3, 3, 3, 1, 4, seed=1)
    options = {"stride": 1, "padding": ((1, 1), (1, 1)), "groups": 4}

    def results(f, x, kernels):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(f(x[None], kernel, **options)))

        each = jax.vmap(jax.grad(loss, argnums=(0, 1)), (0, None))(x, kernels[0])
        own = jax.vmap(jax.grad(loss, argnums=(0, 1)))(x, kernels)
        mapped = jax.grad(lambda x, k: jax.vmap(loss, (0, None))(x, k).sum(), argnums=(0, 1))(x, kernels[0])
        return jax.vmap(loss)(x, kernels), *each, *own, *mapped

    for a, b in zip(
        *jax.jit(lambda x, kernels: [results(f, x, kernels) for f in (convolve, xla)])(x, kernels), strict=True
    ):
        assert_close(a, b, 1e-5)


def test_each_order_is_lowered_for_each_platform():
    """As many convolutions as of XLA's own on accelerators, and none on CPU."""
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 16), jnp.float32)

    def counts(f, platform):
        f = functools.partial(f, stride=1, padding=((1, 1), (1, 1)), groups=16)
        loss = lambda x, k: jnp.sum(f(x, k) ** 2)  # noqa: E731
        modes = (lambda x, k: jax.jvp(f, (x, k), (x, k)), lambda x, k: forward_over_reverse(loss, (x, k), (x, k)))
        lowered = (jax.jit(mode).trace(x, kernel).lower(lowering_platforms=(platform,)) for mode in modes)
        return [program.as_text().count("stablehlo.convolution") for program in lowered]

    assert counts(convolve, "cpu") == [0, 0]
    for platform in ("cuda", "tpu"):
        assert counts(convolve, platform) == counts(xla, platform)


def loss_of(model, *, training):
    """Returns the function (parameters, other leaves, images) -> loss, and both kinds of leaves."""
    structure, params, rest = nnx.split(train_view(model) if training else model, nnx.Param, ...)

    def loss(params, rest, images):
        return jnp.sum(jnp.sin(nnx.merge(structure, params, rest, copy=True)(images)))

    return loss, params, rest


CONVNETS = [name for name in KINDS if not name.startswith(("deit", "vit", "flexivit", "beit", "test_vit"))]
FAST = ("test_resnet", "resnetblur18", "resnetv2_18", "test_efficientnet")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in CONVNETS])
def test_hessian_vector_products_of_every_convnet_lower(name):
    """Lowered, not only traced: JAX reports a derivative that has no forward mode when it lowers the program."""
    loss, params, rest = loss_of(registry.build_abstract(name, num_classes=3), training=True)

    def product(params, rest, images):
        return jax.jvp(jax.grad(loss), (params, rest, images), (params, jax.tree.map(zero_tangent, rest), images))[1]

    traced = jax.jit(product).trace(params, rest, jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32))
    assert jax.tree.map(jnp.shape, traced.out_info) == jax.tree.map(jnp.shape, params)
    for platform in ("cpu", "tpu"):
        traced.lower(lowering_platforms=(platform,))


def zero_tangent(x):
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)


@pytest.mark.slow  # compiles second derivatives of a model
def test_directional_derivatives_of_a_model_match_differences():
    """The derivative of an EfficientNet's loss, and of its gradient, along a direction: central differences."""
    loss, params, rest = loss_of(random_model("test_efficientnet", num_classes=3), training=False)
    along = jax.tree.map(lambda p: jnp.asarray(noise(*p.shape, seed=p.size)) * jnp.std(p), params)
    images, h = jnp.asarray(noise(2, 32, 32, 3)), 1e-3

    @jax.jit
    def derivatives(params, along):
        value = functools.partial(loss, rest=rest, images=images)
        above, below = (jax.tree.map(lambda p, a, s=s: p + s * a, params, along) for s in (h, -h))
        difference = lambda f: jax.tree.map(lambda a, b: (a - b) / (2 * h), f(above), f(below))  # noqa: E731
        return [(jax.jvp(f, (params,), (along,))[1], difference(f)) for f in (value, jax.grad(value))]

    for got, wanted in derivatives(params, along):
        got, wanted = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (got, wanted))
        assert jnp.linalg.norm(got - wanted) < 1e-2 * jnp.linalg.norm(wanted)


def plain_normalize(x, gain, bias, axes, epsilon):
    """Returns the formula of batch normalization in training, differentiated by JAX."""
    mean = x.mean(axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    return (x - mean) * (jax.lax.rsqrt(var + epsilon) * gain) + bias, mean, var


@pytest.mark.parametrize(("shape", "axes"), [((4, 5, 5, 3), (0, 1, 2)), ((2, 2, 5, 5, 3), (1, 2, 3)), ((6, 3), (0,))])
def test_written_derivatives_of_batch_norm_match_autodiff(shape, axes):
    """In float64: values, forward mode, gradients and second derivatives, also of the statistics."""
    with jax.enable_x64(True):
        x, dx = (np.float64(noise(*shape, seed=seed)) for seed in (0, 1))
        (gain, bias), (dgain, dbias) = (noise(2, *(1,) * (len(shape) - 1), 3, seed=seed) for seed in (2, 3))
        primals = tuple(map(np.float64, (x, gain, bias)))
        tangents = tuple(map(np.float64, (dx, dgain, dbias)))

        def results(normalize):
            f = functools.partial(normalize, axes=axes, epsilon=1e-5)

            def loss(*primals):
                outputs = f(*primals)
                return sum(jnp.sum(jnp.sin(y) * (1 + jnp.arange(y.size).reshape(y.shape))) for y in outputs)

            gradient = jax.grad(loss, argnums=(0, 1, 2))
            second = jax.jvp(gradient, primals, tangents)[1]
            return jax.tree.leaves((jax.jvp(f, primals, tangents), gradient(*primals), second))

        written = lambda x, gain, bias, axes, epsilon: _normalize(x, gain, bias, axes, epsilon)  # noqa: E731
        for got, wanted in zip(jax.jit(lambda: results(written))(), results(plain_normalize), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())
