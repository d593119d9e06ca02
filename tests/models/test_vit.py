"""Vision Transformers: equal results to timm, and the interface of a `Model`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import OURS, assert_close, images, pair, random_model
from support.reference import import_timm

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.attention import Attention
from jaxvision.models.layers.mode import train_view
from jaxvision.weights.timm import load_timm, timm_name

# Compiled, because running each operation separately is slower.
forward = jax.jit(lambda model, x: model(x))


def tiny(**options):
    """Returns a two-block ViT for 32 x 32 images."""
    return random_model("test_vit", image_size=32, depth=2, **options)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (2, 32, 32, 3))


# --- comparison with timm ---


@pytest.mark.timm
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "test_vit",
            {"depth": 3, "img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 7, "init_values": 0.1},
        ),
        ("vit_tiny_patch16_224", {"img_size": 48}),
        ("deit_tiny_distilled_patch16_224", {"depth": 3, "img_size": 32, "num_classes": 10}),
    ],
)
def test_features_and_logits_match_timm(name, options) -> None:
    theirs, ours = pair(name, **options)
    torch_x, x = images(2, options["img_size"], options["img_size"], options.get("in_chans", 3))
    features, pooled, logits = jax.jit(
        lambda model, x: (f := model.forward_features(x), model.forward_head(f, pre_logits=True), model(x))
    )(ours, x)
    torch_features = theirs.forward_features(torch_x)
    assert_close(features, torch_features.detach())
    assert_close(pooled, theirs.forward_head(torch_features, pre_logits=True).detach())
    assert_close(logits, theirs(torch_x).detach())


@pytest.mark.timm
def test_logits_at_another_image_size_match_timm(tmp_path) -> None:
    from safetensors.torch import save_file

    theirs, _ = pair("test_vit", img_size=64)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    theirs.set_input_size(img_size=(96, 96))
    ours = load_timm(registry.build_abstract("test_vit", image_size=96), tmp_path / "model.safetensors")
    torch_x, x = images(1, 96, 96, 3)
    assert_close(jax.jit(lambda model, x: model(x))(ours, x), theirs(torch_x).detach())


@pytest.mark.timm
@pytest.mark.parametrize("name", ["vit_small_patch32_384", "deit_tiny_distilled_patch16_224"])
def test_every_parameter_has_timms_name_and_shape(name) -> None:
    theirs = import_timm().create_model(name, device="meta")
    wanted = {key: tuple(p.shape) for key, p in theirs.named_parameters()}
    ours = nnx.to_flat_state(nnx.state(registry.build_abstract(name)))
    found = {}
    for path, leaf in ours:
        leaf_name, axes = tree.join(path), range(leaf.ndim)
        if leaf_name.endswith("kernel"):
            axes = (leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))
        found[timm_name(leaf_name)] = tuple(leaf.shape[i] for i in axes)
    assert found == wanted


@pytest.mark.timm
def test_initial_weights_are_distributed_like_timms() -> None:
    import torch

    with torch.random.fork_rng():
        # Seeded: once in 2**24 numbers, trunc_normal_ draws a uniform -1 and returns -2, or 100 standard deviations.
        torch.manual_seed(0)
        theirs = dict(import_timm().create_model("vit_tiny_patch16_224", img_size=32, depth=2).named_parameters())
    ours = registry.build("vit_tiny_patch16_224", image_size=32, depth=2, rngs=nnx.Rngs(0))
    for path, leaf in nnx.to_flat_state(nnx.state(ours)):
        name = tree.join(path)
        value, wanted = np.asarray(leaf.get_value()), theirs[timm_name(name)].detach().numpy()
        spread = float(wanted.std())
        assert value.std() == pytest.approx(spread, rel=0.1 if value.size > 5000 else 0.35, abs=1e-12), name
        # The largest number distinguishes a uniform distribution (1.7 standard deviations) from a normal one.
        assert (np.abs(value).max() > 2.2 * spread) == (np.abs(wanted).max() > 2.2 * spread), name
        assert value.mean() == pytest.approx(wanted.mean(), abs=5 * spread / value.size**0.5 + 1e-12), name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_large_patch16_384", 304_715_752),
        ("deit_small_distilled_patch16_224", 22_436_432),
    ],
)
def test_number_of_parameters_is_the_published_one(name, parameters) -> None:
    leaves = jax.tree.leaves(nnx.state(registry.build_abstract(name), nnx.Param))
    assert sum(leaf.size for leaf in leaves) == parameters


# --- the interface of `Model` ---


def test_attributes_describe_the_model() -> None:
    model = registry.build_abstract("deit_base_distilled_patch16_384", num_classes=5, in_channels=4)
    assert (model.architecture, model.family) == ("deit_base_distilled_patch16_384", "vit")
    assert (model.num_classes, model.in_channels, model.image_size) == (5, 4, 384)
    assert (model.patch_size, model.grid_size, model.num_prefix_tokens) == (16, (24, 24), 2)
    assert model.classifier_names == ("head", "head_dist")
    assert model.first_conv == "patch_embed.proj"
    assert set(model.no_weight_decay()) == {"cls_token", "dist_token", "pos_embed"}


def test_reset_classifier_changes_only_the_heads(x) -> None:
    model = tiny(distilled=True)
    before = {name: p.get_value() for name, p in nnx.to_flat_state(nnx.state(model))}
    model.reset_classifier(3, rngs=nnx.Rngs(5))
    after = {name: p.get_value() for name, p in nnx.to_flat_state(nnx.state(model))}
    assert forward(model, x).shape == (2, 3)
    assert {path[0] for path in after if after[path] is not before[path]} == {"head", "head_dist"}


def test_a_headless_model_returns_pooled_features(x) -> None:
    model = tiny(num_classes=0)
    pooled, features = jax.jit(lambda model, x: (model(x), model.forward_features(x)))(model, x)
    np.testing.assert_array_equal(pooled, features[:, 0])
    model.reset_classifier(4, rngs=nnx.Rngs(0))
    assert forward(model, x).shape == (2, 4)
    model.reset_classifier(0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(forward(model, x), pooled)


def test_every_parameter_has_a_finite_nonzero_gradient(x) -> None:
    model = train_view(tiny(distilled=True, layer_scale=0.1, dropout=0.1, attention_dropout=0.1, drop_path=0.1))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradient(params, rest):
        return (nnx.merge(graph, params, rest, copy=True)(x) ** 2).sum()

    for path, g in nnx.to_flat_state(gradient(params, rest)):
        g = np.asarray(g.get_value())
        assert np.isfinite(g).all(), path
        assert np.abs(g).max() > 0, path


def test_bfloat16_keeps_float32_parameters_and_gives_close_logits(x) -> None:
    half = tiny(dtype=jnp.bfloat16)
    logits, features = jax.jit(lambda model, x: (model(x), model.forward_features(x)))(half, x)
    assert logits.dtype == features.dtype == jnp.bfloat16
    assert half.head.kernel.dtype == jnp.float32
    assert_close(logits.astype(jnp.float32), forward(tiny(), x), 2e-2)
    assert registry.build_abstract("test_vit", param_dtype=jnp.bfloat16).pos_embed.dtype == jnp.bfloat16


# --- dropout at the places of the paper ---


def test_dropout_is_active_only_in_training(x) -> None:
    model, plain = tiny(dropout=0.5, attention_dropout=0.5, drop_path=0.5), tiny()
    nnx.update(plain, nnx.state(model, nnx.Param))
    plain = forward(plain, x)
    np.testing.assert_array_equal(forward(model, x), plain)
    first, second = nnx.jit(lambda model, x: (model(x), model(x)))(train_view(model), x)
    assert np.abs(first - second).max() > 0
    np.testing.assert_array_equal(forward(model, x), plain)


def test_every_layer_gets_its_dropout_rate() -> None:
    model = registry.build_abstract("test_vit", dropout=0.1, attention_dropout=0.2, drop_path=0.5)
    rates = {tree.join(p): m.rate for p, m in nnx.iter_modules(model) if hasattr(m, "rate")}
    assert rates.pop("pos_drop") == 0.1
    for name, rate in rates.items():
        block, part = int(name.split(".")[1]), name.split(".", 2)[2]
        wanted = {"attn.attn_drop": 0.2, "drop_path1": 0.1 * block, "drop_path2": 0.1 * block}
        assert rate == pytest.approx(wanted.get(part, 0.1)), name
    assert {n.split(".", 2)[2] for n in rates} == {
        "attn.attn_drop",
        "attn.proj_drop",
        "mlp.drop1",
        "mlp.drop2",
        "drop_path1",
        "drop_path2",
    }


def test_attention_dropout_drops_weights() -> None:
    # Values of 1 and weights that sum to 1 give 1. With a quarter of n weights dropped, the mean is 1 with a spread.
    n, rate = 64, 0.25
    attention = Attention(4, 2, attention_dropout=rate, rngs=nnx.Rngs(0))
    attention.qkv.kernel[...] = jnp.zeros((4, 12))
    attention.qkv.bias[...] = jnp.concatenate([jnp.zeros(8), jnp.ones(4)])
    attention.proj.kernel[...] = jnp.eye(4)
    x = jnp.zeros((16, n, 4))
    np.testing.assert_allclose(attention(x), 1, rtol=1e-6)
    heads = np.asarray(train_view(attention)(x))[..., ::2].ravel()  # one number per head and query
    assert heads.mean() == pytest.approx(1, abs=0.01)
    assert heads.std() == pytest.approx((rate / (1 - rate) / n) ** 0.5, rel=0.1)


# --- errors ---


def test_invalid_arguments_and_images_are_errors(x) -> None:
    with pytest.raises(UserError, match=r"image_size: got 30, expected a multiple of the patch size 16\. .* 16 and 32"):
        registry.build_abstract("test_vit", image_size=30)
    with pytest.raises(UserError, match="num_heads: got 3, expected a divisor of the width 64"):
        registry.build_abstract("test_vit", num_heads=3)
    model = registry.build_abstract("test_vit", image_size=32, dynamic_image_size=False)
    with pytest.raises(UserError, match=r"images: got shape \[2, 48, 48, 3\], expected \[b, 32, 32, 3\]"):
        model(jnp.zeros((2, 48, 48, 3)))
    with pytest.raises(UserError, match="images: got shape"):
        model(x[0])
    with pytest.raises(UserError, match="Did you mean 'drop_path'"):
        registry.build_abstract("test_vit", drop_paths=0.1)


def test_the_options_that_tests_translate_from_timm_exist() -> None:
    known = {option for name in ("test_vit", "test_resnet") for option in registry.options(name)}
    assert set(OURS.values()) <= known
