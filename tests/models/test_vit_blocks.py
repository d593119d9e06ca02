"""Every kind of Vision Transformer in timm, with its tokens, pools, norms and blocks, compared with timm."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import OURS, assert_close, assert_gradients_close, images, pair, random_model, randomized
from support.reference import import_timm

from jaxvision import tree
from jaxvision.analysis.attention import attention_rollout, class_attention
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers import sizes
from jaxvision.models.layers.mode import train_view
from jaxvision.models.vit import POOLS
from jaxvision.train.optim import decay_mask, layer_scales
from jaxvision.train.partial import add_lora, merge_lora
from jaxvision.weights.timm import load_timm, timm_name, timm_shape, weights

SMALL = {"embed_dim": 48, "num_heads": 2}
# One architecture of each kind and its patch size. The comments say what the kind tests.
KINDS = {
    "deit3_small_patch16_224": 16,  # no position embedding of the class token, LayerScale
    "eva_large_patch14_196": 14,  # class token, but mean of the patches; norm after pooling
    "vit_base_patch16_siglip_gap_224": 16,  # no class token, norm before pooling
    "vit_base_patch16_clip_quickgelu_224": 16,  # norm before the blocks, no patch bias, epsilon, quick GELU
    "vit_base_patch32_siglip_256": 32,  # attention pool, tanh GELU
    "vit_so150m2_patch16_reg1_gap_256": 16,  # registers with position embeddings, no qkv bias
    "vit_medium_patch16_reg4_gap_256": 16,  # registers without position embeddings
    "vit_base_patch14_reg4_dinov2": 14,  # class token and registers
    "vit_giant_patch14_dinov2": 14,  # packed SwiGLU
    "aimv2_large_patch14_224": 14,  # RMSNorm, also after the patch projection; split SwiGLU; no biases
    "beit3_base_patch16_224": 16,  # norms inside attention and MLP
    "vit_intern300m_patch14_448": 14,  # no final norm, images of any size
    "vit_base_patch16_xp_224": 16,  # parallel attention and MLP, norms of queries and keys
    "vit_pwee_patch16_reg1_gap_256": 16,  # the same with biases
    "vit_dpwee_patch16_reg1_gap_256": 16,  # parallel, differential
    "vit_dwee_patch16_reg1_gap_256": 16,  # differential attention
    "vit_base_patch16_rpn_224": 16,  # post-norm
    "vit_small_patch16_18x2_224": 16,  # two attention layers, two MLPs
    "test_vit3": 16,  # attention pool over patches and registers
}
PARALLEL = ("vit_base_patch16_xp_224", "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256")
DIFFERENTIAL = ("vit_dpwee_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256")

# One of each kind of block.
BLOCKS = (
    "vit_giant_patch14_dinov2",
    "aimv2_large_patch14_224",
    "beit3_base_patch16_224",
    "vit_base_patch16_xp_224",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_dwee_patch16_reg1_gap_256",
    "vit_base_patch16_rpn_224",
    "vit_small_patch16_18x2_224",
)

every_block = pytest.mark.parametrize("name", BLOCKS)
every_kind = pytest.mark.parametrize("name", KINDS)


@functools.cache
def small_pair(name):
    """Returns timm's model and ours with one block, or two if the block is special, for 2 x 2 patches."""
    return pair(name, img_size=2 * KINDS[name], num_classes=7, depth=1 + (name in BLOCKS), **SMALL)


def small(name, **options):
    return random_model(name, image_size=2 * KINDS[name], num_classes=7, depth=2, **SMALL, **options)


def inputs(name):
    return images(2, 2 * KINDS[name], 2 * KINDS[name], 3)


# --- comparison with timm ---


@pytest.mark.timm
@every_kind
def test_features_maps_and_logits_match_timm(name) -> None:
    import torch

    theirs, ours = small_pair(name)
    torch_x, x = inputs(name)

    @jax.jit
    def run(model, x):
        features, maps = model.forward_intermediates(x, [-1], return_prefix_tokens=True, norm=True)
        return features, maps, model.forward_head(features, pre_logits=True), model(x)

    features, maps, pooled, logits = run(ours, x)
    with torch.no_grad():
        wanted, torch_maps = theirs.forward_intermediates(torch_x, [-1], return_prefix_tokens=True, norm=True)
        assert_close(features, wanted)
        assert_close(features, theirs.forward_features(torch_x))
        assert_close(pooled, theirs.forward_head(wanted, pre_logits=True))
        assert_close(logits, theirs(torch_x))
    assert len(maps) == len(torch_maps) == 1
    for got, want in zip(maps, torch_maps, strict=True):
        if ours.num_prefix_tokens:
            (got, prefix), (want, torch_prefix) = got, want
            assert_close(prefix, torch_prefix)
        assert_close(got, want.permute(0, 2, 3, 1))


@pytest.mark.timm
@pytest.mark.parametrize("name", [*BLOCKS, "vit_base_patch32_siglip_256", "vit_base_patch16_clip_quickgelu_224"])
def test_gradients_match_timm(name) -> None:
    import torch

    theirs, ours = small_pair(name)
    torch_x, x = inputs(name)
    labels = np.array([3, 5])
    theirs.zero_grad()
    loss = torch.nn.functional.cross_entropy(theirs.train()(torch_x), torch.tensor(labels))
    loss.backward()
    theirs.eval()

    @jax.jit
    def run(model, x):
        def loss(model):
            return -jnp.take_along_axis(jax.nn.log_softmax(model(x)), labels[:, None], axis=1).mean()

        return nnx.value_and_grad(loss)(train_view(model))

    value, gradients = run(ours, x)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_gradients_close(gradients, theirs, 1e-5)


@pytest.mark.timm
@every_kind
def test_names_shapes_groups_and_rates_match_timm(name) -> None:
    timm = import_timm()
    from timm.layers import DropPath
    from timm.models import group_parameters
    from torch import nn

    rates = {
        "pos_drop_rate": 0.1,
        "proj_drop_rate": 0.1,
        "attn_drop_rate": 0.2,
        "drop_rate": 0.3,
        "drop_path_rate": 0.4,
    }
    theirs = timm.create_model(name, device="meta", depth=3, num_classes=9, **rates)
    ours = registry.build_abstract(
        name,
        depth=3,
        dropout=0.1,
        attention_dropout=0.2,
        head_dropout=0.3,
        drop_path=0.4,
        num_classes=9,
    )
    names = {leaf: timm_name(leaf) for leaf in weights(ours)}
    shapes = {names[leaf]: timm_shape(leaf, variable.shape) for leaf, variable in weights(ours).items()}
    assert shapes == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}

    groups = ours.layer_groups()
    matched = tree.match(list(names), [(p, i) for i, p in enumerate(groups)], default=len(groups))
    wanted = group_parameters(theirs, theirs.group_matcher(), reverse=True)
    assert {names[leaf]: group for leaf, group in matched.items()} == wanted
    assert len(set(layer_scales(ours, 0.5).values())) == len(groups) + 1

    decays = {key: p.ndim > 1 and key not in theirs.no_weight_decay() for key, p in theirs.named_parameters()}
    assert {names[leaf]: decay for leaf, decay in decay_mask(ours).items()} == decays

    info = [(level["module"], level["num_chs"], level["reduction"]) for level in theirs.feature_info]
    assert [tuple(level) for level in ours.feature_info] == info

    found = {tree.join(path): m.rate for path, m in nnx.iter_modules(ours) if getattr(m, "rate", 0)}
    expected = {path: m.p for path, m in theirs.named_modules() if isinstance(m, nn.Dropout) and m.p}
    expected |= {path: m.drop_prob for path, m in theirs.named_modules() if isinstance(m, DropPath) and m.drop_prob}
    assert found == pytest.approx(expected)


@pytest.mark.timm
@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch32_siglip_256",
        "vit_giant_patch14_dinov2",
        "aimv2_large_patch14_224",
        "vit_base_patch16_xp_224",
        "vit_dpwee_patch16_reg1_gap_256",
        "vit_dwee_patch16_reg1_gap_256",
        "vit_base_patch16_rpn_224",
        "vit_base_patch14_reg4_dinov2",
    ],
)
def test_initial_weights_are_distributed_like_timms(name) -> None:
    import torch

    shape = {"depth": 2, "embed_dim": 192, "num_heads": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = import_timm().create_model(name, img_size=2 * KINDS[name], num_classes=40, **shape).state_dict()
    ours = registry.build(name, image_size=2 * KINDS[name], num_classes=40, rngs=nnx.Rngs(0), **shape)
    for leaf, variable in weights(ours).items():
        value, wanted = np.asarray(variable.get_value()), theirs[timm_name(leaf)].numpy()
        spread = float(wanted.std())
        assert value.std() == pytest.approx(spread, rel=0.1 if value.size > 5000 else 0.5, abs=1e-12), leaf
        assert value.mean() == pytest.approx(wanted.mean(), abs=6 * spread / value.size**0.5 + 1e-12), leaf
        # The halves of a packed layer are initialized differently.
        if leaf.endswith("fc1.kernel"):
            half = value.shape[1] // 2
            for a, b in zip((value[:, :half], value[:, half:]), (wanted[:half], wanted[half:]), strict=True):
                assert a.std() == pytest.approx(float(b.std()), rel=0.1), leaf


@pytest.mark.timm
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fc_norm", [None, False])
def test_pools_match_timm(pool, fc_norm) -> None:
    options = {"depth": 1, "img_size": 32, "num_classes": 5, "reg_tokens": 2}
    theirs, ours = pair("test_vit", global_pool=pool, fc_norm=fc_norm, **options)
    torch_x, x = images(2, 32, 32, 3)
    assert_close(jax.jit(lambda model, x: model(x))(ours, x), theirs(torch_x).detach())


@pytest.mark.timm
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {}),
        ("test_vit2", {}),
        ("deit_tiny_distilled_patch16_224", {"dynamic_img_size": True}),
        ("deit3_small_patch16_224", {"dynamic_img_size": True}),
        ("vit_medium_patch16_reg4_gap_256", {"dynamic_img_size": True}),
    ],
)
def test_dynamic_image_sizes_match_timm(name, options) -> None:
    theirs, ours = pair(name, img_size=64, depth=1, embed_dim=48, num_heads=2, **options)
    run = jax.jit(lambda model, x: (model(x), model.forward_intermediates(x, 1)[1]))
    for size in ((64, 64), (48, 80), (32, 128)):  # the last has as many patches as the first
        torch_x, x = images(1, *size, 3)
        logits, (last,) = run(ours, x)
        assert_close(logits, theirs(torch_x).detach())
        assert last.shape == (1, size[0] // 16, size[1] // 16, 48)
        assert class_attention(ours, x).shape == (1, size[0] // 16, size[1] // 16)
    with pytest.raises(UserError, match=r"image_size: got \(40, 64\), expected a multiple of the patch size 16"):
        ours(jnp.zeros((1, 40, 64, 3)))


@pytest.mark.timm
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"img_size": (96, 160)}),
        ("test_vit", {"img_size": (64, 400)}),  # as many patches as at 160 x 160, in another grid
        ("test_vit2", {"img_size": (64, 96), "patch_size": (8, 12)}),
        ("test_vit3", {"img_size": 96, "patch_size": 24, "in_chans": 1}),
        ("flexivit_small", {"img_size": (240, 120), "patch_size": (30, 20), "depth": 2}),
        ("deit3_small_patch16_224", {"img_size": 448, "patch_size": 32, "depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"img_size": (112, 448), "in_chans": 5, "depth": 2}),
    ],
)
def test_weights_adapted_to_other_sizes_match_timm(name, options, tmp_path) -> None:
    assert_resampled_weights_match_timm(name, options, tmp_path)


# Which tokens have position embeddings: one architecture for each rule.
POSITIONS = {
    "vit_tiny_patch16_224": "class token and patches",
    "deit_tiny_distilled_patch16_224": "two tokens and patches",
    "deit3_small_patch16_224": "patches only, with a class token",
    "vit_medium_patch16_gap_256": "patches only, without other tokens",
    "vit_medium_patch16_reg4_gap_256": "patches only, with registers",
    "vit_small_patch14_reg4_dinov2": "patches only, with class token and registers",
    "vit_small_patch14_dinov2": "class token and patches, in a 37 x 37 grid",
    "vit_base_patch16_clip_224": "class token and patches, then a norm",
    "vit_base_patch32_siglip_256": "patches only, with attention pooling",
    "flexivit_small": "patches only, resampled bilinearly",
    "vit_tiny_r_s16_p8_224": "class token and the patches of a ResNet's feature map",
}


@pytest.mark.timm
@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("factor", [2, 0.5])
def test_positions_at_twice_and_half_the_size_match_timm(name, factor, tmp_path) -> None:
    native = registry.build_abstract(name)
    stride = native.patch_embed.stride
    size = int(native.image_size * factor) // stride * stride
    assert_resampled_weights_match_timm(name, {"img_size": size, "depth": 1}, tmp_path)


def assert_resampled_weights_match_timm(name, options, tmp_path) -> None:
    """Asserts that a model with `options` and weights of the native size has timm's logits."""
    import torch
    from safetensors.torch import save_file

    timm, file = import_timm(), tmp_path / "model.safetensors"
    common = {key: options[key] for key in options if key == "depth"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(randomized(timm.create_model(name, num_classes=9, **common)).state_dict(), file)
    overlay = {"file": str(file), "num_classes": 9}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=9, **options).eval()
    ours = registry.build_abstract(name, num_classes=9, **{OURS.get(k, k): v for k, v in options.items()})
    load_timm(ours, file, published=True)  # as timm's pretrained=True does
    torch_x, x = images(1, *sizes.pair("image_size", options["img_size"]), options.get("in_chans", 3))
    assert_close(jax.jit(lambda model, x: model(x))(ours, x), theirs(torch_x).detach(), 2e-5)


@pytest.mark.timm
def test_a_model_without_attention_pooling_loads_weights_of_one_with_it(tmp_path) -> None:
    from safetensors.torch import save_file

    timm, file = import_timm(), tmp_path / "model.safetensors"
    options = {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 4}
    save_file(randomized(timm.create_model("vit_base_patch16_siglip_224", **options)).state_dict(), file)
    overlay = {"file": str(file), "num_classes": 4, "input_size": (3, 32, 32)}
    name = "vit_base_patch16_siglip_gap_224"
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
    ours = {OURS.get(key, key): value for key, value in options.items()}
    torch_x, x = images(1, 32, 32, 3)
    model = load_timm(registry.build_abstract(name, **ours), file)
    assert_close(jax.jit(lambda model, x: model(x))(model, x), theirs(torch_x).detach())
    with pytest.raises(UserError, match=r"normalize before pooling\. Build the model with fc_norm=False"):
        load_timm(registry.build_abstract("vit_base_patch16_siglip_224", global_pool="avg", **ours), file)


@pytest.mark.timm
def test_remaining_pixels_are_ignored_as_in_timm() -> None:
    theirs, ours = pair("vit_so400m_patch14_siglip_384", img_size=34, num_classes=7, depth=1, **SMALL)
    torch_x, x = images(2, 34, 34, 3)
    assert_close(jax.jit(lambda model, x: model(x))(ours, x), theirs(torch_x).detach())
    assert registry.build_abstract("vit_so400m_patch14_siglip_384", depth=1).grid_size == (27, 27)
    with pytest.raises(
        UserError, match=r"image_size: got 384, expected a multiple of the patch size 14\. .* 378 and 392"
    ):
        registry.build_abstract("vit_so400m_patch14_siglip_378", image_size=384)


# --- attention ---


@pytest.mark.timm
@every_block
def test_attention_maps_match_timm(name) -> None:
    theirs, ours = small_pair(name)
    torch_x, x = inputs(name)
    seen, hooks = [], []
    for module in theirs.modules():
        if hasattr(module, "attn_drop"):
            module.fused_attn = False
            hooks.append(module.attn_drop.register_forward_hook(lambda m, args, out: seen.append(out.detach().numpy())))
    theirs(torch_x)
    for hook in hooks:
        hook.remove()
    maps = np.asarray(jax.jit(lambda model, x: model.get_attention_maps(x))(ours, x))
    if name in DIFFERENTIAL:
        block = ours.blocks[-1] if name in PARALLEL else ours.blocks[-1].attn
        a, b, c, d = (np.asarray(getattr(block, f"lambda_{key}")[...]) for key in ("q1", "k1", "q2", "k2"))
        share = np.exp(a @ b) - np.exp(c @ d) + 0.8 - 0.6 * np.exp(-0.3)
        np.testing.assert_allclose(maps.sum(-1), 1 - share, rtol=1e-4)
        wanted = seen[-1][:, 0::2] - share * seen[-1][:, 1::2]
    else:
        np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
        wanted = np.concatenate(seen[-2:], axis=1) if "18x2" in name else seen[-1]
    assert_close(maps, wanted)


@every_block
def test_rollout_returns_a_weight_for_each_patch(name) -> None:
    model = small(name)
    x = jax.random.normal(jax.random.key(0), (2, 2 * KINDS[name], 2 * KINDS[name], 3))
    for heat in jax.jit(lambda model, x: (attention_rollout(model, x), class_attention(model, x)))(model, x):
        assert heat.shape == (2, 2, 2)
        assert np.isfinite(heat).all()
        if name not in DIFFERENTIAL:
            assert (heat > 0).all()
            assert (heat.sum((1, 2)) <= 1 + 1e-6).all()


def test_class_attention_without_a_class_token_is_the_mean_over_queries() -> None:
    model = small("vit_medium_patch16_reg4_gap_256")
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    maps = model.get_attention_maps(x, layer_idx=0).mean(1)
    np.testing.assert_allclose(class_attention(model, x, 0), maps[:, 4:, 4:].mean(1).reshape(2, 2, 2), rtol=1e-5)


def test_class_attention_of_an_attention_pool_starts_at_its_query() -> None:
    model = small("test_vit3")
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    features = model.forward_features(x)
    weights = model.attn_pool.weights(features)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(class_attention(model, x), weights[:, :, 0, 1:].mean(1).reshape(2, 2, 2), rtol=1e-6)
    # The rollout starts at the pool's weights and passes through two blocks.
    product = np.asarray(weights[:, :, 0].mean(1))
    for i in (1, 0):
        block = np.asarray(model.get_attention_maps(x, layer_idx=i).mean(1))
        product = 0.5 * product + 0.5 * np.einsum("bn,bnm->bm", product, block)
    np.testing.assert_allclose(attention_rollout(model, x), product[:, 1:].reshape(2, 2, 2), rtol=1e-5)


# --- LoRA and errors ---


@every_block
def test_lora_adapts_every_linear_layer_of_the_blocks(name) -> None:
    model = small(name)
    structure, linear = nnx.graphdef(model), {n for n in weights(model) if n.startswith("blocks.") and "kernel" in n}
    add_lora(model, rank=2, rngs=nnx.Rngs(0))
    adapted = {tree.join(path)[: -len("lora_a")] for path, leaf in nnx.iter_graph(model) if path[-1:] == ("lora_a",)}
    assert adapted == {name.removesuffix("kernel") for name in linear}
    assert nnx.graphdef(merge_lora(model)) == structure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"global_pool": "mean"},
            "got 'mean', expected one of '', 'avg', 'avgmax', 'map', 'max', 'token'",
        ),
        ({"class_token": False}, "global_pool: got 'token' with class_token=False"),
        (
            {"distilled": True, "global_pool": "avg"},
            "distilled: got global_pool=",
        ),
        ({"activation": "relu"}, "activation: got 'relu', expected one of"),
        ({"interpolation": "nearest"}, "interpolation: got 'nearest', expected one of"),
        (
            {"image_size": (64, 60)},
            r"image_size: got \(64, 60\), expected a multiple of the patch size 16\. .* \(64, 48\) and \(80, 64\)",
        ),
        (
            {"patch_size": (16, 8, 4)},
            r"patch_size: got \(16, 8, 4\), expected pixels as an integer, .* \(height, width\)",
        ),
        ({"block": "Block"}, "got 'block', expected an argument of test_vit"),
    ],
)
def test_invalid_arguments_are_errors(options, message) -> None:
    with pytest.raises(UserError, match=message):
        registry.build_abstract("test_vit", **options)


def test_a_missing_level_is_an_error() -> None:
    model = registry.build_abstract("test_vit", image_size=32)
    with pytest.raises(UserError, match="indices: got 7, expected a number from 1 to 6"):
        model.forward_intermediates(jnp.zeros((1, 32, 32, 3)), 7)
