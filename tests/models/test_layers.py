"""The layers of the convolutional families compared with XLA's convolution, PyTorch and results by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from support.against_timm import assert_close, fill, randomized
from support.reference import import_timm

from jaxvision.errors import UserError
from jaxvision.models.base import feature_indices
from jaxvision.models.layers import norm
from jaxvision.models.layers.conv import Conv, StdConv
from jaxvision.models.layers.convolve import convolve, same_padding
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.pool import (
    GLOBAL_POOLS,
    avg_pool,
    blur_pool,
    check_global_pool,
    global_avg_pool,
    global_pool,
    max_pool,
    tile_pool,
)
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.squeeze_excite import (
    EfficientChannelAttention,
    GlobalContext,
    SqueezeExcite,
    SqueezeExciteReduce,
)
from jaxvision.models.layers.width import make_divisible


def to_torch(x: np.ndarray):
    import torch

    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def channels_last(tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def xla(x, kernel, *, stride, padding, groups=1, dilation=1):
    """Returns XLA's convolution, the reference for `convolve`."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def padding_of(kind: str, size: tuple[int, int], k: int, stride: int):
    return same_padding(size, k, stride) if kind == "same" else ((k // 2, k // 2), (k // 2, k // 2))


def values_and_gradients(fn, x, kernel):
    y, pullback = jax.vjp(fn, x, kernel)
    return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


# Every kind of depthwise convolution in an EfficientNet, on even and odd sides, down to a single pixel.
@pytest.mark.parametrize("kind", ["torch", "same"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 5])
def test_depthwise_values_and_gradients_match_xla(k, stride, kind):
    sizes = [(1, 1), (2, 1), (5, 4), (8, 9), (15, 10)]

    @jax.jit
    def both(xs, kernel):
        result = []
        for x in xs:
            padding = padding_of(kind, x.shape[1:3], k, stride)
            options = {"stride": stride, "padding": padding, "groups": x.shape[-1]}
            result.append([values_and_gradients(functools.partial(f, **options), x, kernel) for f in (convolve, xla)])
        return result

    xs = [noise(3, h, w, 6) for h, w in sizes]
    for ours, theirs in both(xs, noise(k, k, 1, 6, seed=1)):
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, 2e-6)


@pytest.mark.parametrize(("c", "d", "groups", "stride"), [(128, 128, 32, 1), (24, 48, 3, 2), (6, 12, 6, 1)])
def test_grouped_values_and_gradients_match_xla(c, d, groups, stride):
    options = {"stride": stride, "padding": ((1, 1), (1, 1)), "groups": groups}
    x, kernel = noise(2, 7, 6, c), noise(3, 3, c // groups, d, seed=1)

    @jax.jit
    def both(x, kernel):
        return [values_and_gradients(functools.partial(f, **options), x, kernel) for f in (convolve, xla)]

    for a, b in zip(*both(x, kernel), strict=True):
        assert_close(a, b, 2e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 7])
def test_convolutions_of_tiny_images_match_xla(k, stride):
    padding = ((k // 2, k // 2), (k // 2, k // 2))
    kernel = noise(k, k, 4, 5, seed=1)

    @jax.jit
    def both(xs):
        fns = [functools.partial(f, stride=stride, padding=padding) for f in (convolve, xla)]
        return [[values_and_gradients(f, x, kernel) for f in fns] for x in xs]

    for ours, theirs in both([noise(3, h, w, 4) for h, w in [(1, 1), (2, 3), (4, 2), (9, 8)]]):
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, 2e-6)


def test_convolutions_and_derivatives_of_wide_images_match_xla():
    x, kernel = noise(2, 33, 9, 4), noise(3, 3, 4, 5, seed=1)
    options = {"stride": 1, "padding": ((1, 1), (1, 1))}

    @jax.jit
    def both(x, kernel):
        results = []
        for f in (functools.partial(convolve, **options), functools.partial(xla, **options)):
            tangents = jax.jvp(f, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))[1]
            kernel_gradient = jax.grad(lambda kernel, f=f: jnp.sum(jnp.sin(f(x, kernel))))(kernel)
            results.append([*values_and_gradients(f, x, kernel), tangents, kernel_gradient])
        return results

    for a, b in zip(*both(x, kernel), strict=True):
        assert_close(a, b, 2e-6)


def test_depthwise_supports_second_derivatives_and_vmap():
    x, kernel = noise(2, 5, 5, 4), noise(3, 3, 1, 4, seed=1)
    options = {"stride": 1, "padding": ((1, 1), (1, 1)), "groups": 4}

    def curvature(f):
        def loss(kernel):
            return jnp.sum(jnp.sin(f(x, kernel, **options)))

        return jax.grad(lambda k: jnp.vdot(jax.grad(loss)(k), k))(kernel)

    assert_close(jax.jit(lambda: curvature(convolve))(), jax.jit(lambda: curvature(xla))(), 1e-5)
    mapped = jax.vmap(lambda x: convolve(x[None], kernel, **options)[0])(x)
    assert_close(mapped, xla(x, kernel, **options), 2e-6)


@pytest.mark.parametrize("groups", [1, 6])
def test_bfloat16_is_rounded_once(groups):
    # Both implementations sum the products in float32, so only the last bit may differ from the exact sum.
    x, kernel = noise(2, 9, 9, 6).astype(jnp.bfloat16), noise(5, 5, 6 // groups, 6, seed=1).astype(jnp.bfloat16)
    options = {"stride": 1, "padding": ((2, 2), (2, 2)), "groups": groups}
    exact = xla(x.astype(jnp.float32), kernel.astype(jnp.float32), **options)
    got = convolve(x, kernel, **options)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def test_each_platform_gets_its_own_lowering():
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 16), jnp.float32)

    def loss(x, kernel):
        return jnp.sum(convolve(x, kernel, padding=((1, 1), (1, 1)), groups=16))

    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(x, kernel)
    convolutions = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")
        for platform in ("cpu", "cuda", "tpu")
    }
    assert convolutions == {"cpu": 0, "cuda": 3, "tpu": 3}


@pytest.mark.parametrize("stride", [1, 2])
def test_1x1_convolution_is_a_matrix_product(stride):
    x, kernel = noise(2, 7, 6, 5), noise(1, 1, 5, 4, seed=1)
    got = convolve(x, kernel, stride=stride, padding=((0, 0), (0, 0)))
    assert_close(got, xla(x, kernel, stride=stride, padding="VALID"), 1e-6)
    assert_close(got, np.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], kernel[0, 0]), 1e-6)


def test_same_padding_matches_xla():
    for n in range(1, 12):
        for k in (1, 2, 3, 5, 7):
            for stride in (1, 2, 3):
                for dilation in (1, 2):
                    effective = (k - 1) * dilation + 1
                    wanted = lax.padtype_to_pads((n,), (effective,), (stride,), "SAME")[0]
                    assert same_padding((n, n), k, stride, dilation)[0] == wanted


@pytest.mark.timm
@pytest.mark.parametrize(
    ("k", "stride", "dilation", "groups"),
    [(7, 2, 1, 1), (3, 2, 1, 1), (3, 1, 1, 2), (5, 2, 1, 4), (1, 2, 1, 1), (3, 1, 2, 1)],
)
@pytest.mark.parametrize("kind", ["torch", "same"])
def test_conv_matches_timm(kind, k, stride, dilation, groups):
    from support.reference import import_timm

    import_timm()
    import torch
    from timm.layers import create_conv2d

    x = noise(2, 11, 14, 4)
    layer = Conv(
        4, 8, k, stride=stride, padding=kind, dilation=dilation, groups=groups, use_bias=True, rngs=nnx.Rngs(0)
    )
    theirs = create_conv2d(
        4,
        8,
        k,
        stride=stride,
        padding="same" if kind == "same" else "",
        dilation=dilation,
        groups=groups,
        bias=True,
    )
    layer.kernel[...] = noise(k, k, 4 // groups, 8, seed=1)
    layer.bias[...] = noise(8, seed=2)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(np.array(layer.kernel[...]).transpose(3, 2, 0, 1)))
        theirs.bias.copy_(torch.from_numpy(np.array(layer.bias[...])))
        wanted = channels_last(theirs(to_torch(x)))
    assert_close(layer(x), wanted, 1e-6)


def test_conv_computes_in_dtype_and_keeps_param_dtype():
    layer = Conv(3, 4, 3, use_bias=True, dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert layer.kernel.dtype == layer.bias.dtype == jnp.float32
    assert layer(jnp.zeros((1, 4, 4, 3))).dtype == jnp.bfloat16


def test_invalid_convolutions_are_errors():
    with pytest.raises(ValueError, match="expected a divisor of"):
        Conv(3, 4, 3, groups=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="expected 'torch' or 'same'"):
        Conv(3, 4, 3, padding="valid", rngs=nnx.Rngs(0))


@pytest.mark.timm
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
def test_pools_match_pytorch(size):
    import_timm()
    import torch
    from timm.layers import BlurPool2d, create_pool2d

    x = noise(2, *size, 3)
    tensor = to_torch(x).requires_grad_()
    cases = [
        (max_pool, torch.nn.MaxPool2d(3, 2, 1)),
        (functools.partial(max_pool, stride=1), torch.nn.MaxPool2d(3, 1, 1)),
        (functools.partial(max_pool, padding="same"), create_pool2d("max", 3, 2, padding="same")),
        (
            functools.partial(max_pool, padding="zero"),
            torch.nn.Sequential(torch.nn.ConstantPad2d(1, 0.0), torch.nn.MaxPool2d(3, 2)),
        ),
        (blur_pool, BlurPool2d(3)),
        (functools.partial(blur_pool, stride=1, border="zero"), BlurPool2d(stride=1, pad_mode="constant")),
        (tile_pool, torch.nn.AvgPool2d(2)),
        (avg_pool, torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)),
        (global_avg_pool, lambda x: x.mean((2, 3))),
    ]
    for ours, theirs in cases:
        tensor.grad = None
        wanted = theirs(tensor)
        (wanted**2).sum().backward()
        assert_close(ours(x), channels_last(wanted), 1e-6)
        assert_close(jax.grad(lambda x, f=ours: jnp.sum(f(x) ** 2))(x), channels_last(tensor.grad), 1e-6)


@pytest.mark.timm
@pytest.mark.parametrize("kind", GLOBAL_POOLS)
def test_global_pools_match_timm(kind):
    import_timm()
    from timm.layers import SelectAdaptivePool2d

    x = noise(2, 3, 5, 4)
    theirs = SelectAdaptivePool2d(pool_type=kind, flatten=bool(kind))
    assert_close(global_pool(x, kind), channels_last(theirs(to_torch(x))), 1e-6)
    assert global_pool(x, kind).shape[-1] == 4 * GLOBAL_POOLS[kind]


def test_invalid_pools_and_levels_are_errors():
    with pytest.raises(UserError, match="global_pool: got 'mean', expected one of"):
        check_global_pool("mean", 0)
    with pytest.raises(UserError, match="Set num_classes=0"):
        check_global_pool("", 10)
    for indices, message in (
        (6, "got 6, expected a number from 1 to 5"),
        (0, "got 0, expected a number from 1 to 5"),
        ([1, 5], "got the level 5, expected"),
        ([-6], "got the level -6, expected"),
    ):
        with pytest.raises(UserError, match=message):
            feature_indices(indices, 5)


def test_max_pool_on_every_platform():
    x = jnp.asarray(noise(2, 7, 6, 3))
    window = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_array_equal(max_pool(x), window)
    lowered = jax.jit(max_pool).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "reduce_window" in lowered


def test_squeeze_excite_by_hand():
    x = noise(2, 3, 4, 32)
    gate = SqueezeExcite(32, rngs=nnx.Rngs(0))
    assert gate.fc1.kernel.shape == (1, 1, 32, 8)  # 32 / 16 = 2, rounded to a multiple of 8
    w1, b1, w2, b2 = (np.asarray(p[...]) for p in (gate.fc1.kernel, gate.fc1.bias, gate.fc2.kernel, gate.fc2.bias))
    hidden = np.maximum(x.mean((1, 2)) @ w1[0, 0] + b1, 0)
    wanted = x / (1 + np.exp(-(hidden @ w2[0, 0] + b2)))[:, None, None, :]
    assert_close(gate(x), wanted, 1e-6)

    reduce = SqueezeExciteReduce(32, 5, activation=jax.nn.relu, conv=functools.partial(Conv, rngs=nnx.Rngs(0)))
    assert reduce.conv_reduce.kernel.shape == (1, 1, 32, 5)
    assert reduce(x).shape == x.shape


def layer_pair(kind: str):
    """Returns our layer and timm's layer of a kind, with 64 channels unless the kind says otherwise."""
    import_timm()
    import torch
    from timm import layers

    rngs = nnx.Rngs(0)
    return {
        "group": lambda: (norm.GroupNorm(64, rngs=rngs), layers.GroupNorm(64)),
        "group of 16": lambda: (
            norm.GroupNorm(64, group_size=16, rngs=rngs),
            layers.GroupNormAct(64, group_size=16, apply_act=False),
        ),
        "layer": lambda: (norm.LayerNorm(64, rngs=rngs), layers.LayerNorm2d(64)),
        "evo": lambda: (norm.EvoNormS0(64), layers.EvoNorm2dS0(64)),
        "evo of 16": lambda: (norm.EvoNormS0(64, group_size=16), layers.EvoNorm2dS0(64, group_size=16)),
        "evo, affine": lambda: (norm.EvoNormS0(64, activation=False), layers.EvoNorm2dS0(64, apply_act=False)),
        "filter response": lambda: (norm.FilterResponseNorm(64), layers.FilterResponseNormTlu2d(64)),
        "filter response, linear": lambda: (
            norm.FilterResponseNorm(64, activation=False),
            layers.FilterResponseNormTlu2d(64, apply_act=False),
        ),
        "eca": lambda: (EfficientChannelAttention(64, rngs=rngs), layers.EcaModule(64)),
        "eca of 2048": lambda: (EfficientChannelAttention(2048, rngs=rngs), layers.EcaModule(2048)),
        "se": lambda: (SqueezeExcite(64, ratio=0.25, rngs=rngs), layers.SEModule(64, rd_ratio=0.25)),
        "context": lambda: (
            GlobalContext(64, 8, activation=jax.nn.silu, conv=functools.partial(Conv, rngs=rngs), rngs=rngs),
            layers.GlobalContext(64, act_layer=torch.nn.SiLU),
        ),
        "std conv": lambda: (
            StdConv(64, 8, 3, stride=2, groups=2, use_bias=True, rngs=rngs),
            layers.StdConv2d(64, 8, 3, stride=2, groups=2, bias=True, eps=1e-8),
        ),
        "std conv, same": lambda: (
            StdConv(64, 8, 3, stride=2, padding="same", epsilon=1e-6, rngs=rngs),
            layers.StdConv2dSame(64, 8, 3, stride=2),
        ),
    }[kind]()


@pytest.mark.timm
@pytest.mark.parametrize(
    "kind",
    [
        "group", "group of 16", "layer", "evo", "evo of 16", "evo, affine", "filter response",
        "filter response, linear", "eca", "eca of 2048", "se", "context", "std conv", "std conv, same",
    ],
)  # fmt: skip
def test_layers_match_timm_forward_and_backward(kind):
    ours, theirs = layer_pair(kind)
    fill(ours, randomized(theirs).state_dict())
    x = noise(2, 6, 5, 2048 if "2048" in kind else 64)
    tensor = to_torch(x).requires_grad_()
    wanted = theirs(tensor)
    (wanted**2).sum().backward()
    assert_close(ours(x), channels_last(wanted), 1e-5)
    gradient = jax.jit(jax.grad(lambda x, layer: jnp.sum(layer(x) ** 2)))(x, ours)
    assert_close(gradient, channels_last(tensor.grad), 2e-5)


@pytest.mark.parametrize("layer", [norm.GroupNorm, norm.LayerNorm, norm.EvoNormS0, norm.FilterResponseNorm])
def test_norms_compute_in_bfloat16_with_statistics_in_float32(layer):
    x = jnp.asarray(noise(2, 5, 5, 64) + 3, jnp.bfloat16)
    exact = layer(64, rngs=nnx.Rngs(0))(x.astype(jnp.float32))
    rounded = layer(64, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(x)
    assert rounded.dtype == jnp.bfloat16
    assert_close(rounded.astype(jnp.float32), exact, 2**-7)


def test_groups_that_do_not_divide_are_errors():
    for options in ({"groups": 7}, {"group_size": 24}):
        with pytest.raises(ValueError, match="expected a divisor of 64 channels"):
            norm.GroupNorm(64, **options, rngs=nnx.Rngs(0))


def test_make_divisible():
    # Widths in timm's tables: EfficientNet-B2 and B4, the squeezed widths of SE-ResNet-50, MobileNetV2 0.35.
    assert [make_divisible(c * 1.1) for c in (16, 24, 40, 80, 112, 192, 320)] == [16, 24, 48, 88, 120, 208, 352]
    assert [make_divisible(c * 1.4) for c in (16, 24, 40, 80, 112, 192, 320)] == [24, 32, 56, 112, 160, 272, 448]
    assert [make_divisible(c / 16, round_limit=0.0) for c in (256, 512, 1024, 2048)] == [16, 32, 64, 128]
    assert make_divisible(32 * 0.35) == 16
    assert make_divisible(32 * 0.35, round_limit=0.0) == 8


def test_a_sequential_adds_no_segment_to_names():
    from jaxvision import tree

    net = Sequential([nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jax.nn.relu, nnx.Linear(3, 1, rngs=nnx.Rngs(0))])
    assert tree.names(nnx.state(net)) == ["0.bias", "0.kernel", "2.bias", "2.kernel"]
    x = noise(4, 2)
    np.testing.assert_array_equal(net(x), net[2](jax.nn.relu(net[0](x))))


def test_a_head_is_initialized_like_pytorchs_linear():
    head = linear_head(100, 1000, rngs=nnx.Rngs(0))
    for leaf in (head.kernel[...], head.bias[...]):
        assert float(jnp.abs(leaf).max()) <= 0.1
        np.testing.assert_allclose(jnp.std(leaf), 0.2 / np.sqrt(12), rtol=0.05)


def test_a_head_can_replace_none():
    class Net(nnx.Module):
        def __init__(self):
            self.fc = linear_head(4, 0, rngs=nnx.Rngs(0))

    net = Net()
    assert net.fc is None
    net.fc = linear_head(4, 2, rngs=nnx.Rngs(0))
    assert net.fc(jnp.zeros((1, 4))).shape == (1, 2)
