"""Derivatives of each mode and order: the CPU's convolutions and pooling, compared with XLA's, and whole convnets."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from support.against_timm import assert_close, random_model
from support.kinds import KINDS

from jaxvision.models import registry
from jaxvision.models.layers.convolve import convolve, same_padding
from jaxvision.models.layers.mode import train_view
from jaxvision.models.layers.norm import _normalize
from jaxvision.models.layers.pool import max_pool
from jaxvision.parallel.mesh import make_mesh
from jaxvision.platform import compiled_for


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


# Depthwise, a loop over blocks of rows, one of them incomplete; dense, a loop over images; pointwise, a product.
CONVOLUTIONS = [
    ("depthwise", (9, 6), 3, 1, "torch"),
    ("depthwise", (9, 6), 5, 2, "torch"),
    ("depthwise", (9, 6), 3, 2, "same"),
    ("dense", (16, 15), 3, 1, "torch"),
    ("dense", (29, 30), 7, 2, "torch"),
    ("dense", (28, 27), 3, 2, "same"),
    ("dense", (5, 5), 1, 2, "torch"),
]


@pytest.mark.parametrize(("which", "size", "k", "stride", "kind"), CONVOLUTIONS)
def test_convolutions_in_forward_mode_and_twice_match_xla(which, size, k, stride, kind):
    x, kernel = noise(2, *size, 4), noise(k, k, *((1, 4) if which == "depthwise" else (4, 3)), seed=1)
    dx, dkernel = noise(*x.shape, seed=2), noise(*kernel.shape, seed=3)
    padding = same_padding(size, k, stride) if kind == "same" else ((k // 2, k // 2),) * 2
    options = {"stride": stride, "padding": padding, "groups": 4 if which == "depthwise" else 1}

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


@pytest.mark.parametrize(("size", "inner", "groups"), [(5, 1, 4), (15, 4, 1)])
def test_convolutions_under_vmap_in_both_orders_match_xla(size, inner, groups):
    """Gradients for each image, with and without a kernel for each, and the gradient of a mapped loss."""
    x, kernels = noise(3, size, size, 4), noise(3, 3, 3, inner, 4, seed=1)
    options = {"stride": 1, "padding": ((1, 1), (1, 1)), "groups": groups}

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


@pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight fake devices of conftest.py")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "groups"), [((3, 3, 8, 16), 1), ((3, 3, 1, 8), 8)])
@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_devices_that_share_a_batch_communicate_once_for_a_kernel(kernel, groups, stride, axes):
    """Each device adds up its own images, and no image moves."""
    mesh = make_mesh(axes)
    kernel, x = noise(*kernel), noise(16, 28, 28, 8, seed=1)
    batch = PartitionSpec(tuple(axis for axis in axes if axis != "tensor"))
    shardings = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, batch)

    def loss(kernel, x, convolution):
        return jnp.sum(jnp.sin(convolution(x, kernel, stride=stride, padding=((1, 1), (1, 1)), groups=groups)))

    with compiled_for(mesh):
        gradient = jax.jit(
            jax.grad(functools.partial(loss, convolution=convolve), argnums=(0, 1)),
            in_shardings=shardings,
            out_shardings=shardings,
        )
        text = gradient.lower(kernel, x).compile().as_text()
        got = gradient(kernel, x)
    assert text.count(" all-reduce(") == 1
    assert not any(f" {kind}(" in text for kind in ("all-gather", "all-to-all", "collective-permute"))
    wanted = jax.jit(jax.grad(functools.partial(loss, convolution=xla), argnums=(0, 1)))(kernel, x)
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_kernels_are_summed_in_float32(groups):
    """A sum of 131,120 in bfloat16, added image by image, would stop growing at half of it."""
    x = np.random.default_rng(0).uniform(size=(1024, 16, 16, 2))
    kernel = jnp.ones((3, 3, 2 // groups, 2), jnp.bfloat16)

    def loss(kernel, x):
        return jnp.sum(convolve(x, kernel, padding=((1, 1), (1, 1)), groups=groups).astype(jnp.float32))

    got = jax.jit(jax.grad(loss))(kernel, jnp.asarray(x, jnp.bfloat16))
    np.testing.assert_allclose(got[1, 1, 0, 0], x[..., 0].sum(), rtol=1e-2)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_of_kernels_for_every_size_of_batch(groups, batch):
    x, kernel = noise(batch, 16, 14, 4), noise(3, 3, 4 // groups, 4, seed=1)
    options = {"stride": 1, "padding": ((1, 1), (1, 1)), "groups": groups}
    for got, wanted in zip(
        *(jax.grad(lambda x, k, f=f: jnp.sum(jnp.sin(f(x, k, **options))), (0, 1))(x, kernel) for f in (convolve, xla)),
        strict=True,
    ):
        assert_close(got, wanted, 1e-5) if batch else np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("size", "groups"), [(16, 1), (16, 4), (5, 1)])
def test_gradients_are_exported_for_any_size_of_batch(size, groups):
    pytest.importorskip("flatbuffers")
    (b,) = jax.export.symbolic_shape("b")
    kernel = noise(3, 3, 4 // groups, 4)
    gradient = jax.grad(lambda k, x: jnp.sum(jnp.sin(convolve(x, k, padding=((1, 1), (1, 1)), groups=groups))))
    shapes = jax.ShapeDtypeStruct(kernel.shape, jnp.float32), jax.ShapeDtypeStruct((b, size, size, 4), jnp.float32)
    exported = jax.export.export(jax.jit(gradient), platforms=("cpu", "tpu"))(*shapes)
    for batch in (1, 4):
        x = noise(batch, size, size, 4, seed=1)
        assert_close(exported.call(kernel, x), gradient(kernel, x), 1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [((9, 12), 2, "torch"), ((8, 7), 2, "same"), ((8, 7), 2, "zero"), ((11, 10), 2, "zero"), ((6, 5), 1, "torch")],
)
def test_max_pooling_in_forward_mode_and_twice_matches_xla(size, stride, padding):
    x, dx = noise(2, *size, 3), noise(2, *size, 3, seed=1)

    def results(platform):
        pool = functools.partial(max_pool, stride=stride, padding=padding)
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))
        with compiled_for(platform):  # "tpu" has XLA's reduce_window
            return jax.jit(lambda: (jax.jvp(pool, (x,), (dx,)), jax.jvp(gradient, (x,), (dx,))))()

    for got, wanted in zip(*(jax.tree.leaves(results(platform)) for platform in ("cpu", "tpu")), strict=True):
        assert_close(got, wanted, 1e-6)


def test_the_first_of_equal_maxima_has_the_gradient():
    """As in PyTorch. The image [[3, 2], [1, 3]] has two maxima in its window. A NaN is larger than every number."""
    for last, wanted in ((3, [[1, 0], [0, 0]]), (jnp.nan, [[0, 0], [0, 1]])):
        image = jnp.array([[3.0, 2.0], [1.0, last]]).reshape(1, 2, 2, 1)
        gradient = jax.vjp(max_pool, image)[1](jnp.ones((1, 1, 1, 1)))[0]
        assert gradient[0, :, :, 0].tolist() == wanted


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
