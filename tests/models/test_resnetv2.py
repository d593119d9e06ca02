"""ResNetV2 compared with timm, with the same weights. test_contract.py tests what all families share."""

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
    random_model,
    randomized,
)
from support.reference import import_timm

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.resnetv2 import ResNetV2
from jaxvision.models.resnetv2_blocks import Parts, Stem
from jaxvision.weights.timm import load_timm, save_timm

# Every option at least once: our and timm's arguments for a network of five blocks.
KINDS = {
    "BiT": ({"stem_pool": "zero", "width_factor": 2}, {"stem_type": "fixed", "width_factor": 2}),
    "basic, batch norm": (
        {"block": "preact_basic", "conv": "plain", "norm": "batch"},
        {"basic": True, "bottle_ratio": 1.0, "conv_layer": "plain", "norm_layer": "batchnorm2d"},
    ),
    "tiered, batch norm": (
        {"stem": "tiered", "avg_down": True, "conv": "plain", "norm": "batch"},
        {"stem_type": "tiered", "avg_down": True, "conv_layer": "plain", "norm_layer": "batchnorm2d"},
    ),
    "deep, EvoNorm": (
        {"stem": "deep", "conv": "plain", "norm": "evo", "global_pool": "catavgmax"},
        {"stem_type": "deep", "conv_layer": "plain", "norm_layer": "evonorms0", "global_pool": "catavgmax"},
    ),
    "filter response": (
        {"conv": "plain", "norm": "filter_response"},
        {"conv_layer": "plain", "norm_layer": "frntlu"},
    ),
    "hybrid ViT": (
        {"block": "bottleneck", "padding": "same", "stem_pool": "same"},
        {"preact": False, "conv_layer": "same", "stem_type": "same"},
    ),
}
DEPTHS, WIDTHS = (2, 1, 1, 1), (128, 128, 256, 256)


def small(kind: str, *, randomize: bool = True, classes: int = 10):
    """Returns timm's network of five blocks, and ours."""
    import_timm()
    import torch
    from timm.layers import StdConv2d, StdConv2dSame, create_conv2d
    from timm.layers.filter_response_norm import FilterResponseNormTlu2d
    from timm.models import resnetv2

    ours, theirs = KINDS[kind]
    theirs = dict(theirs)
    convs = {"plain": create_conv2d, "same": functools.partial(StdConv2dSame, eps=1e-8)}
    theirs["conv_layer"] = convs.get(theirs.get("conv_layer"), functools.partial(StdConv2d, eps=1e-8))
    if theirs.get("norm_layer") == "frntlu":
        theirs["norm_layer"] = FilterResponseNormTlu2d
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = resnetv2.ResNetV2(list(DEPTHS), channels=WIDTHS, num_classes=classes, **theirs).eval()

    def build() -> ResNetV2:
        return ResNetV2(depths=DEPTHS, widths=WIDTHS, num_classes=classes, **ours, rngs=nnx.Rngs(0))

    if randomize:
        return randomized(reference), fill(nnx.eval_shape(build), reference.state_dict())
    return reference, build()


@pytest.mark.timm
@pytest.mark.parametrize("kind", KINDS)
def test_feature_maps_and_logits_match_timm(kind):
    theirs, ours = small(kind)
    assert_forward_matches_timm(ours, theirs, 75, tolerance=2e-5)


@pytest.mark.timm
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_timm(kind):
    theirs, ours = small(kind)
    tolerance = 1e-5 if kind in ("deep, EvoNorm", "filter response") else 1e-9
    assert_training_step_matches_timm(ours, theirs, 64, tolerance=tolerance)


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["BiT", "deep, EvoNorm", "filter response", "hybrid ViT"])
def test_initial_weights_are_distributed_like_timms(kind):
    theirs, ours = small(kind, randomize=False, classes=100)
    assert_initialized_alike(ours, theirs)
    theirs.reset_classifier(100)
    ours.reset_classifier(100, rngs=nnx.Rngs(1))
    assert_initialized_alike(ours, theirs)


@pytest.mark.timm
@pytest.mark.parametrize("name", ["resnetv2_18", "resnetv2_50d_evos", "resnetv2_50x1_bit"])
def test_layer_groups_match_timm(name):
    assert_groups_match_timm(name)


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["deep", "plain"])
def test_a_stem_alone_matches_timm(kind):
    import_timm()
    from timm.layers import StdConv2dSame
    from timm.models.resnetv2 import create_resnetv2_stem

    stem_type = {"deep": "deep_same", "plain": "same"}[kind]
    conv = functools.partial(StdConv2dSame, eps=1e-8)
    theirs = randomized(create_resnetv2_stem(3, stem_type=stem_type, preact=False, conv_layer=conv))
    parts = Parts(nnx.Rngs(0), padding="same")
    ours = fill(Stem(parts, 3, 64, kind=kind, pool="same", normalize=True), theirs.state_dict())
    tensor, array = images(2, 33, 30, 3)
    assert_close(jax.jit(lambda stem, x: stem(x))(ours, array), channels_last(theirs(tensor)))


@pytest.mark.timm
def test_stochastic_depth_and_dropout_rates_match_timm():
    model = registry.build_abstract("resnetv2_18", drop_path=0.7, dropout=0.3)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    theirs = import_timm().create_model("resnetv2_18", drop_path_rate=0.7, drop_rate=0.3)
    wanted = [getattr(block.drop_path, "drop_prob", 0.0) for stage in theirs.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, wanted, atol=1e-7)
    assert wanted[-1] > 0.6
    assert model.head.drop.rate == theirs.head.drop.p == 0.3


@pytest.mark.timm
def test_a_head_without_pooling_returns_a_map_of_logits():
    theirs = randomized(import_timm().create_model("resnetv2_18", num_classes=5, global_pool="").eval())
    ours = fill(registry.build_abstract("resnetv2_18", num_classes=5, global_pool=""), theirs.state_dict())
    tensor, array = images(2, 3, 4, 512)
    assert_close(ours.forward_head(array), channels_last(theirs.forward_head(tensor)))
    assert_close(ours.forward_head(array, pre_logits=True), array)


def test_a_headless_model_returns_pooled_features_until_it_gets_a_head():
    model = random_model("resnetv2_18", num_classes=0)
    features = jnp.ones((2, 2, 2, 512))
    assert model.forward_head(features).shape == (2, 512)
    before = set(tree.names(nnx.state(model)))
    model.reset_classifier(7, rngs=nnx.Rngs(1))
    assert model.forward_head(features).shape == (2, 7)
    assert set(tree.names(nnx.state(model))) - before == {"head.fc.kernel", "head.fc.bias"}


def test_a_saved_file_loads_with_the_same_or_another_head(tmp_path):
    model = random_model("resnetv2_18", num_classes=5, depths=(1,), widths=(32,))
    save_timm(model, tmp_path / "model.safetensors")
    again = load_timm(registry.build_abstract("resnetv2_18", num_classes=5, depths=(1,), widths=(32,)), tmp_path)
    other = load_timm(registry.build_abstract("resnetv2_18", num_classes=3, depths=(1,), widths=(32,)), tmp_path)
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    np.testing.assert_array_equal(jax.jit(lambda m, x: m(x))(again, x), jax.jit(lambda m, x: m(x))(model, x))
    np.testing.assert_array_equal(other.stem.conv.kernel[...], model.stem.conv.kernel[...])
    assert other.head.fc.kernel.shape == (1, 1, 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "basic"}, "block: got 'basic', expected one of .* Did you mean"),
        ({"stem": "fixed"}, "stem: got 'fixed', expected one of"),
        ({"norm": "layer"}, "norm: got 'layer', expected one of"),
        ({"conv": "standard"}, "conv: got"),
        ({"padding": "valid"}, "padding: got"),
        ({"stem_pool": "max"}, "stem_pool: got"),
        ({"global_pool": "mean"}, "global_pool: got"),
        ({"depths": (1,) * 5}, "expected one for each stage"),
    ],
)
def test_invalid_arguments_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        registry.build_abstract("resnetv2_50", **options)
