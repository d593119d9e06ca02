"""ResNets compared with timm, with the same weights. test_contract.py tests what all families share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import (
    assert_close,
    assert_forward_matches_timm,
    assert_groups_match_timm,
    assert_initialized_alike,
    assert_training_step_matches_timm,
    channels_last,
    fill,
    images,
    pair,
    random_model,
    randomized,
)
from support.reference import import_timm

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.mode import train_view
from jaxvision.models.resnet import ResNet
from jaxvision.models.resnet_blocks import BasicBlock, Bottleneck, Parts

# Every option at least once: our and timm's arguments for a network of four blocks.
KINDS = {
    "resnext": ({"groups": 32, "base_width": 4}, {"cardinality": 32, "base_width": 4}),
    "wide SE-ResNet-D": (
        {"gate": "se", "stem_width": 32, "avg_down": True, "base_width": 128},
        {
            "block_args": {"attn_layer": "se"},
            "stem_type": "deep",
            "stem_width": 32,
            "avg_down": True,
            "base_width": 128,
        },
    ),
    "ECA-ResNet-T, blurred": (
        {"gate": "eca", "stem_width": 32, "tiered_stem": True, "avg_down": True, "antialias": "blur"},
        {
            "block_args": {"attn_layer": "eca"},
            "stem_type": "deep_tiered",
            "stem_width": 32,
            "avg_down": True,
            "aa_layer": "blur",
        },
    ),
    "SENet": (
        {"gate": "se", "groups": 4, "base_width": 16, "narrow_first": 2, "shortcut_kernel": 3},
        {
            "block_args": {"attn_layer": "se"},
            "cardinality": 4,
            "base_width": 16,
            "block_reduce_first": 2,
            "down_kernel_size": 3,
        },
    ),
    "ResNet-RS": (
        {"gate": "se4", "stem_width": 16, "stem_pool": "conv"},
        {
            "block_args": {"attn_layer": "se4"},
            "stem_type": "deep",
            "stem_width": 16,
            "replace_stem_pool": True,
        },
    ),
    "averaged": ({"antialias": "avg", "block": "basic"}, {"aa_layer": "avg", "block": "basic"}),
    "blurred, with a convolution instead of a pool": (
        {"antialias": "blur", "stem_pool": "conv", "block": "basic"},
        {"aa_layer": "blur", "replace_stem_pool": True, "block": "basic"},
    ),
    "group norm": (
        {"norm": "group", "global_pool": "catavgmax"},
        {"norm_layer": "groupnorm", "global_pool": "catavgmax"},
    ),
}


def small(kind: str, *, randomize: bool = True):
    """Returns timm's network of four blocks, and ours."""
    import_timm()
    import torch
    from timm.layers import BlurPool2d, SEModule
    from timm.models import resnet

    ours, theirs = KINDS[kind]
    theirs = dict(theirs)
    block = getattr(resnet, "BasicBlock" if theirs.pop("block", "") else "Bottleneck")
    if "aa_layer" in theirs:
        theirs["aa_layer"] = {"avg": torch.nn.AvgPool2d, "blur": BlurPool2d}[theirs["aa_layer"]]
    if theirs.get("block_args", {}).get("attn_layer") == "se4":
        theirs["block_args"] = {"attn_layer": functools.partial(SEModule, rd_ratio=0.25)}
    shape = {"num_classes": 10, "in_chans": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = resnet.ResNet(block, (1, 1, 1, 1), channels=(32, 32, 64, 64), **shape, **theirs).eval()

    def build() -> ResNet:
        return ResNet(depths=(1, 1, 1, 1), widths=(32, 32, 64, 64), num_classes=10, **ours, rngs=nnx.Rngs(0))

    if randomize:
        return randomized(reference), fill(nnx.eval_shape(build), reference.state_dict())
    return reference, build()


# With odd sides, the pools and strides of every stage reach past a border. test_golden.py tests the full networks.
@pytest.mark.timm
@pytest.mark.parametrize("kind", ["test_resnet", *KINDS])
def test_feature_maps_and_logits_match_timm(kind):
    theirs, ours = pair(kind) if kind == "test_resnet" else small(kind)
    assert_forward_matches_timm(ours, theirs, 64 if kind == "averaged" else 47)


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["ECA-ResNet-T, blurred", "SENet", "ResNet-RS", "averaged", "group norm"])
def test_gradients_match_timm(kind):
    theirs, ours = small(kind)
    assert_training_step_matches_timm(ours, theirs, 64)


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["ECA-ResNet-T, blurred", "SENet", "group norm"])
def test_initial_weights_are_distributed_like_timms(kind):
    theirs, ours = small(kind, randomize=False)
    assert_initialized_alike(ours, theirs)


@pytest.mark.timm
def test_a_pruned_network_matches_timm():
    theirs, ours = pair("ecaresnet50d_pruned", num_classes=10)
    assert_forward_matches_timm(ours, theirs, 33)
    with pytest.raises(UserError, match="a pruned network has fixed depths"):
        registry.build_abstract("ecaresnet50d_pruned", depths=(1, 1, 1, 1))


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["max", "avgmax", "catavgmax", ""])
def test_global_pooling_matches_timm(kind):
    theirs, ours = pair("test_resnet", global_pool=kind, in_chans=4, num_classes=7 if kind else 0)
    tensor, array = images(2, 3, 5, 96)
    assert_close(ours.forward_head(array), channels_last(theirs.forward_head(tensor)))
    pooled = ours.forward_head(array, pre_logits=True)
    assert_close(pooled, channels_last(theirs.forward_head(tensor, pre_logits=True)))
    assert pooled.shape[-1] == ours.num_features


@pytest.mark.timm
def test_feature_indices_match_timm():
    theirs, ours = pair("test_resnet")
    tensor, array = images(1, 32, 32, 3)
    choices = [None, 2, (0, -1), [3, 1]]
    got = jax.jit(lambda model, x: [model.forward_intermediates(x, indices) for indices in choices])(ours, array)
    for (features, maps), indices in zip(got, choices, strict=True):
        wanted_features, wanted = theirs.forward_intermediates(tensor, indices)
        for a, b in zip([features, *maps], [wanted_features, *wanted], strict=True):
            assert_close(a, channels_last(b))


@pytest.mark.timm
@pytest.mark.parametrize("name", ["test_resnet", "resnet50", "resnet50d", "resnetrs50", "resnet50_gn"])
def test_layer_groups_match_timm(name):
    assert_groups_match_timm(name)


@pytest.mark.timm
def test_training_step_matches_timm():
    theirs, ours = pair("test_resnet", num_classes=10)
    assert_training_step_matches_timm(ours, theirs, 64)


def test_initial_weights_of_a_block():
    for block, last in ((BasicBlock, "bn2"), (Bottleneck, "bn3")):
        made = block(Parts(nnx.Rngs(0)), 32, 32, stride=2)
        assert not getattr(made, last).scale[...].any()  # a branch is initially zero
        assert (made.bn1.scale[...] == 1).all()
        assert (made.downsample[1].scale[...] == 1).all()
        np.testing.assert_allclose(jnp.std(made.conv2.kernel[...]), np.sqrt(2 / (9 * 32)), rtol=0.02)


@pytest.mark.timm
def test_stochastic_depth_and_dropout_rates_match_timm():
    model = registry.build_abstract("resnet18", drop_path=0.7, dropout=0.3)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    np.testing.assert_allclose(rates, np.arange(8) / 7 * 0.7)
    theirs = import_timm().create_model("resnet18", drop_path_rate=0.7, drop_rate=0.3)
    blocks = [block for i in range(1, 5) for block in getattr(theirs, f"layer{i}")]
    np.testing.assert_allclose(rates, [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks])
    assert model.drop.rate == theirs.drop_rate


def test_a_headless_model_returns_pooled_features_until_it_gets_a_head():
    model = random_model("test_resnet", num_classes=0)
    features = jnp.ones((2, 2, 2, 96))
    assert model.forward_head(features).shape == (2, 96)
    before = dict(zip(tree.names(nnx.state(model)), jax.tree.leaves(nnx.state(model)), strict=True))
    model.reset_classifier(7, rngs=nnx.Rngs(1))
    assert model.forward_head(features).shape == (2, 7)
    after = dict(zip(tree.names(nnx.state(model)), jax.tree.leaves(nnx.state(model)), strict=True))
    assert set(after) - set(before) == {"fc.kernel", "fc.bias"}
    assert all(after[name] is before[name] for name in before)


def test_dropout_is_active_only_in_training():
    model = random_model("test_resnet", dropout=0.5)
    features = jnp.ones((2, 2, 2, 96))
    assert (model.forward_head(features, pre_logits=True) == 1).all()
    dropped = train_view(model).forward_head(features, pre_logits=True)
    assert set(np.unique(dropped)) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "sse"}, "gate: got 'sse', expected one of .* Did you mean 'se'"),
        ({"norm": "layer"}, "norm: got 'layer', expected one of"),
        ({"antialias": "blurr"}, "Did you mean 'blur'"),
        ({"stem_pool": "avg"}, "stem_pool: got"),
        ({"global_pool": "mean"}, "global_pool: got"),
        ({"global_pool": ""}, "Set num_classes=0"),
        ({"groups": 32}, "a basic block does not have them"),
        ({"depths": (1,) * 5}, "expected one for each stage"),
    ],
)
def test_invalid_arguments_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        registry.build_abstract("resnet18", **options)


def test_antialiasing_by_averages_needs_even_maps():
    model = registry.build_abstract("resnetaa34d")
    with pytest.raises(UserError, match="multiples of 32"):
        nnx.eval_shape(lambda model, x: model(x), model, jnp.zeros((1, 48, 48, 3)))
    assert nnx.eval_shape(lambda model, x: model(x), model, jnp.zeros((1, 64, 64, 3))).shape == (1, 1000)
