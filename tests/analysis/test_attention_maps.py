"""jaxvision.analysis.attention: the weights of timm and of the fused path, and the maps computed from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import assert_close, images, pair, random_model

from jaxvision.analysis.attention import attention_rollout, class_attention
from jaxvision.analysis.saliency import explain
from jaxvision.errors import UserError
from jaxvision.models.layers.attention import Attention
from jaxvision.platform import compiled_for

DEPTH = 3


@pytest.fixture(scope="module")
def model():
    return random_model("test_vit", image_size=64, depth=DEPTH, distilled=True)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (2, 64, 64, 3))


@pytest.fixture(scope="module")
def kept(model, x):
    """The weights of every block, as one forward pass keeps them: [[b, heads, n, n], ...]."""
    run = jax.jit(lambda model, x: nnx.capture(model, nnx.Intermediate)(x))
    logits, kept = run(nnx.view(model, keep_weights=True), x)
    np.testing.assert_allclose(logits, jax.jit(lambda model, x: model(x))(model, x), atol=1e-6)
    return [np.asarray(kept["blocks"][i]["attn"]["weights"].get_value()[0]) for i in range(DEPTH)]


@pytest.mark.timm
def test_maps_equal_timms() -> None:
    theirs, ours = pair("deit_tiny_distilled_patch16_224", img_size=48, depth=3)
    seen = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    torch_x, x = images(2, 48, 48, 3)
    theirs(torch_x)
    maps = jax.jit(lambda model, x: [model.get_attention_maps(x, layer_idx=i) for i in range(3)])(ours, x)
    for a, b in zip(maps, seen, strict=True):
        assert_close(a, b)


def test_rows_sum_to_one_in_every_layer(model, x, kept) -> None:
    maps = jax.jit(lambda model, x: [model.get_attention_maps(x, layer_idx=i) for i in range(-DEPTH, DEPTH)])(model, x)
    for layer, a in zip([0, 1, 2, 0, 1, 2], maps, strict=True):
        assert a.dtype == jnp.float32
        assert a.shape == (2, 2, 18, 18)  # two heads; class and distillation token and 4 x 4 patches
        np.testing.assert_allclose(a.sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(a, kept[layer], atol=1e-6)
    assert kept[-1].max() > 0.5  # not the uniform map that any softmax would pass with


def test_the_prefix_can_be_dropped(model, x, kept) -> None:
    maps = model.get_attention_maps(x, drop_prefix=True)
    assert maps.shape == (2, 2, 16, 16)
    np.testing.assert_allclose(maps, kept[-1][:, :, 2:, 2:], atol=1e-6)


def test_layer_out_of_range(model, x) -> None:
    for layer in (DEPTH, -DEPTH - 1):
        with pytest.raises(UserError, match=f"layer_idx: got {layer}, expected a block from 0 to 2, or from -3 to -1"):
            model.get_attention_maps(x, layer_idx=layer)


def test_later_blocks_are_not_run(model, x) -> None:
    poisoned = nnx.clone(model)
    poisoned.blocks[1].mlp.fc1.kernel[...] = jnp.nan
    assert np.isfinite(poisoned.get_attention_maps(x, layer_idx=1)).all()
    assert np.isnan(poisoned.get_attention_maps(x, layer_idx=2)).any()


def test_maps_are_the_weights_of_the_fused_path() -> None:
    attention = Attention(8, 2, rngs=nnx.Rngs(0))
    attention.qkv.kernel[...] = 50 * attention.qkv.kernel[...]
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    v = np.asarray(attention.qkv(x)).reshape(2, 5, 3, 2, 4)[:, :, 2]
    mixed = np.einsum("bkts,bskh->btkh", attention.weights(x), v).reshape(2, 5, 8)
    np.testing.assert_allclose(jax.jit(lambda a, x: a(x))(attention, x), attention.proj(mixed), rtol=1e-5, atol=1e-6)


def test_attention_on_accelerators_equals_attention_on_cpus() -> None:
    attention = Attention(64, 4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 7, 64))

    def run(platform: str) -> jax.Array:
        with compiled_for(platform):
            return jax.jit(lambda attention, x: attention(x))(attention, x)

    np.testing.assert_allclose(run("gpu"), run("cpu"), rtol=1e-5, atol=1e-6)


# --- from weights to maps ---


def test_class_attention_is_the_class_tokens_row(model, x, kept) -> None:
    heat = class_attention(model, x, layer_idx=1)
    np.testing.assert_allclose(heat, kept[1].mean(1)[:, 0, 2:].reshape(2, 4, 4), atol=1e-6)


def test_rollout_multiplies_all_blocks(model, x, kept) -> None:
    product = np.eye(18)
    for weights in kept:
        product = (0.5 * weights.mean(1) + 0.5 * np.eye(18)) @ product
    np.testing.assert_allclose(attention_rollout(model, x), product[:, 0, 2:].reshape(2, 4, 4), rtol=1e-5)


def test_explaining_a_vit_scales_its_rollout(model, x) -> None:
    heat, rollout = np.asarray(explain(model, x)), np.asarray(attention_rollout(model, x))
    low, high = rollout.min((1, 2), keepdims=True), rollout.max((1, 2), keepdims=True)
    np.testing.assert_allclose(heat, (rollout - low) / (high - low), atol=1e-6)
