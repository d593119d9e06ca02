"""EfficientNets compared with timm, with the same weights. test_contract.py tests what all families share."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import (
    assert_close,
    assert_training_step_matches_timm,
    fill,
    images,
    random_model,
    randomized,
)
from support.reference import import_timm

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.efficientnet import EfficientNet
from jaxvision.models.efficientnet_plan import Row, Stage, repeat_rows
from jaxvision.models.efficientnet_table import B_STAGES
from jaxvision.weights.timm import timm_name, timm_shape, weights


def channels_last(tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


@dataclass(frozen=True)
class Case:
    """A tiny network with blocks of one kind: its stages and arguments in timm and in jaxvision."""

    theirs: list[list[str]]
    ours: tuple[Stage, ...]
    their_options: dict[str, Any] = field(default_factory=dict)
    our_options: dict[str, Any] = field(default_factory=dict)

    def pair(self, *, num_classes: int = 10, drop_path: float = 0.0, pool: str = "avg") -> tuple[Any, Any]:
        """Returns timm's network and ours, with the same random weights."""
        import_timm()
        import torch
        from timm.models.efficientnet import EfficientNet as TimmEfficientNet
        from timm.models.efficientnet import decode_arch_def

        theirs: dict[str, Any] = {"num_features": 24, "stem_size": 16, "act_layer": torch.nn.SiLU}
        theirs |= {key: value() if callable(value) else value for key, value in self.their_options.items()}
        blocks = decode_arch_def(self.theirs, group_size=theirs.pop("group_size", None))
        common = {"num_classes": num_classes, "global_pool": pool}
        reference = TimmEfficientNet(block_args=blocks, **theirs, **common, drop_path_rate=drop_path).eval()
        ours = {"head_features": 24, "stem_features": 16} | self.our_options
        model = nnx.eval_shape(
            lambda: EfficientNet(stages=self.ours, **ours, **common, drop_path=drop_path, rngs=nnx.Rngs(0))
        )
        randomized(reference)
        return reference, fill(model, reference.state_dict())


def timm_norm(name: str, **options: Any) -> Any:
    """Returns a function that returns one of timm's norms, so that timm is imported only when a test runs."""

    def make() -> Any:
        import timm.layers

        return functools.partial(getattr(timm.layers, name), **options)

    return make


def relu6() -> Any:
    import torch

    return torch.nn.ReLU6


MBCONV = [["ds_r1_k3_s1_c16_se0.25"], ["ir_r2_k3_s2_e3_c24_se0.25"]]
MBCONV_ROWS = (Row("ds", 1, 3, 1, 16, 1, 0.25), Row("ir", 2, 3, 2, 24, 3, 0.25))
CASES = {
    "mbconv": Case(MBCONV, MBCONV_ROWS),
    "tensorflow": Case(
        [["cn_r2_k3_s2_c16_skip"], ["er_r2_k3_s2_e2_c24_se0.25"], ["ir_r1_k5_s2_e2_c24"]],
        (Row("cn", 2, 3, 2, 16), Row("er", 2, 3, 2, 24, 2, 0.25), Row("ir", 1, 5, 2, 24, 2)),
        {"pad_type": "same", "norm_layer": timm_norm("BatchNormAct2d", eps=1e-3), "act_layer": relu6},
        {"padding": "same", "epsilon": 1e-3, "activation": "relu6"},
    ),
    "edgetpu": Case(
        [
            ["er_r2_k3_s1_e2_c16_fc24_noskip"],
            ["er_r1_k3_s2_e4_c16", "er_r1_k3_s1_e2_gs8_c16", "ir_r1_k3_s1_e2_c16_nre"],
        ],
        (
            Row("er", 2, 3, 1, 16, 2, shortcut=False, expand_from=24),
            (
                Row("er", 1, 3, 2, 16, 4),
                Row("er", 1, 3, 1, 16, 2, group_size=8),
                Row("ir", 1, 3, 1, 16, 2, activation="relu"),
            ),
        ),
        {"stem_kernel_size": 5},
        {"stem_kernel": 5},
    ),
    "mobilenet v1": Case(
        [["dsa_r1_k3_s1_c16"], ["dsa_r2_k3_s2_c24"]],
        (Row("dsa", 1, 3, 1, 16, shortcut=False), Row("dsa", 2, 3, 2, 24, shortcut=False)),
        {"num_features": 0, "act_layer": relu6},
        {"head_features": 0, "activation": "relu6"},
    ),
    "mixconv": Case(
        [["ir_r1_k3.5.7_s2_e3_c24_se0.5_nsw", "ir_r1_k3.5_a1.1_p1.1_s1_e3_c24_se0.5_nre"]],
        (
            (
                Row("ir", 1, (3, 5, 7), 2, 24, 3, 0.5, activation="silu"),
                Row("ir", 1, (3, 5), 1, 24, 3, 0.5, activation="relu", splits=(2, 2)),
            ),
        ),
        {"pad_type": "same"},
        {"padding": "same"},
    ),
    "condconv": Case([["ir_r2_k3_s2_e3_c16_se0.25_cc4"]], (Row("cc", 2, 3, 2, 16, 3, 0.25, experts=4),)),
    "condconv tf": Case(
        [["ir_r2_k5_s2_e3_c16_cc4"]], (Row("cc", 2, 5, 2, 16, 3, experts=4),), {"pad_type": "same"}, {"padding": "same"}
    ),
    "space to depth": Case(
        [["ds_r2_k3_s1_c16_se0.25_d1"], ["er_r2_k3_s2_e6_c24_se0.25_nre"], ["ir_r1_k5_s2_e3_c24"]],
        (
            Row("ds", 2, 3, 1, 16, 1, 0.25, space_to_depth=True),
            Row("er", 2, 3, 2, 24, 6, 0.25, activation="relu"),
            Row("ir", 1, 5, 2, 24, 3),
        ),
    ),
    "global context": Case(MBCONV, MBCONV_ROWS, {"se_layer": "gc"}, {"gate": "gc"}),
    "blur": Case(MBCONV, MBCONV_ROWS, {"aa_layer": "blurpc"}, {"blur": True}),
    "groups": Case(
        MBCONV,
        MBCONV_ROWS,
        {"group_size": 8, "norm_layer": timm_norm("GroupNormAct", group_size=8)},
        {"group_size": 8, "norm": "group", "norm_group_size": 8},
    ),
    "layer norm": Case(MBCONV, MBCONV_ROWS, {"norm_layer": timm_norm("LayerNormAct2d")}, {"norm": "layer"}),
    "evonorm": Case(
        MBCONV,
        MBCONV_ROWS,
        {"norm_layer": timm_norm("EvoNorm2dS0", group_size=8)},
        {"norm": "evo", "norm_group_size": 8},
    ),
}


# The maps have 30, 15, 8 and 4 pixels: the two padding rules differ for even sides, and odd sides test the rounding.
# test_golden.py tests the logits of the full networks.
@pytest.mark.timm
@pytest.mark.parametrize("case", CASES)
def test_feature_maps_and_logits_match_timm(case):
    theirs, ours = CASES[case].pair()
    size = 30
    tensor, array = images(2, size, size, 3)

    @jax.jit
    def forward(model, x):
        features, maps = model.forward_intermediates(x)
        return maps, features, model.forward_head(features, pre_logits=True), model.forward_head(features)

    maps, features, pooled, logits = forward(ours, array)
    last, wanted = theirs.forward_intermediates(tensor)
    assert [tuple(info) for info in ours.feature_info] == [
        (info["module"], info["num_chs"], info["reduction"]) for info in theirs.feature_info
    ]
    for info, a, b in zip(ours.feature_info, maps, wanted, strict=True):
        assert_close(a, channels_last(b))
        assert (a.shape[-1], -(-size // info.stride)) == (info.channels, a.shape[1])
    assert_close(features, channels_last(last))
    assert_close(pooled, theirs.forward_head(last, pre_logits=True).detach())
    assert_close(logits, theirs(tensor).detach())


@pytest.mark.timm
@pytest.mark.parametrize("case", CASES)
def test_training_step_matches_timm(case):
    theirs, ours = CASES[case].pair()
    assert_training_step_matches_timm(ours, theirs, 32, tolerance=1e-5 if case == "evonorm" else 1e-9)


@pytest.mark.timm
@pytest.mark.parametrize("pool", ["max", "avgmax", "catavgmax", ""])
def test_global_pooling_matches_timm(pool):
    theirs, ours = CASES["mbconv"].pair(num_classes=10 if pool else 0, pool=pool)
    tensor, array = images(2, 32, 32, 3)
    assert_close(jax.jit(lambda model, x: model(x))(ours, array), channels_last(theirs(tensor)))
    ours.reset_classifier(3 if pool else 0, rngs=nnx.Rngs(0))
    theirs.reset_classifier(3 if pool else 0)
    assert nnx.eval_shape(lambda m, x: m(x), ours, array).shape[-1] == (3 if pool else theirs(tensor).shape[1])


def test_global_pool_errors():
    with pytest.raises(UserError, match="num_classes=0"):
        registry.build_abstract("test_efficientnet", global_pool="")
    with pytest.raises(UserError, match="Did you mean 'avgmax'"):
        registry.build_abstract("test_efficientnet", global_pool="avgmx")


@pytest.mark.timm
def test_feature_indices_match_timm():
    theirs, ours = CASES["tensorflow"].pair()
    tensor, array = images(1, 30, 30, 3)
    chosen = (None, 2, [0, -1], (3,))

    @jax.jit
    def forward(model, x):
        return [model.forward_intermediates(x, indices, intermediates_only=True) for indices in chosen]

    for maps, indices in zip(forward(ours, array), chosen, strict=True):
        wanted = theirs.forward_intermediates(tensor, indices, intermediates_only=True)
        for a, b in zip(maps, wanted, strict=True):
            assert_close(a, channels_last(b))


@pytest.mark.timm
@pytest.mark.parametrize(
    "name",
    ["efficientnet_b1_pruned", "mixnet_xl", "tinynet_d", "mobilenetv2_110d", "mobilenetv1_125", "efficientnet_h_b5"],
)
def test_names_shapes_and_shortcuts_match_timm(name):
    timm = import_timm()
    import torch

    with torch.device("meta"):
        theirs = timm.create_model(name, drop_path_rate=0.2)
    wanted = {key: tuple(value.shape) for key, value in theirs.state_dict().items() if "num_batches" not in key}
    ours = registry.build_abstract(name, drop_path=0.2)
    assert {timm_name(key): timm_shape(key, leaf.shape) for key, leaf in weights(ours).items()} == wanted
    assert [tuple(info) for info in ours.feature_info] == [
        (info["module"], info["num_chs"], info["reduction"]) for info in theirs.feature_info
    ]
    for our_stage, their_stage in zip(ours.blocks, theirs.blocks, strict=True):
        assert [block.has_shortcut for block in our_stage] == [block.has_skip for block in their_stage]
        rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in their_stage]  # nn.Identity for a rate of zero
        np.testing.assert_allclose([block.drop_path.rate for block in our_stage], rates)


@pytest.mark.timm
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", ["test_efficientnet", "efficientnet_b0", "mobilenetv1_100", "efficientnet_cc_b0_4e"])
def test_layer_groups_match_timm(name, coarse):
    timm = import_timm()
    import torch
    from timm.models import group_parameters

    with torch.device("meta"):
        theirs = timm.create_model(name)
    wanted = group_parameters(theirs, theirs.group_matcher(coarse=coarse), reverse=True)
    ours = registry.build_abstract(name)
    names = tree.names(nnx.state(ours, nnx.Param))
    patterns = ours.layer_groups(coarse=coarse)
    got = tree.match(names, [(pattern, i) for i, pattern in enumerate(patterns)], default=len(patterns))
    assert {timm_name(n): group for n, group in got.items()} == wanted


def test_b3_has_the_published_widths_and_depths():
    b3 = registry.build_abstract("efficientnet_b3")
    assert [len(stage) for stage in b3.blocks] == [2, 3, 3, 5, 5, 6, 2]
    assert [stage[-1].bn3.scale.shape[0] for stage in list(b3.blocks)[1:]] == [32, 48, 96, 136, 232, 384]
    assert (b3.bn1.scale.shape[0], b3.num_features) == (40, 1536)
    # The squeezed width is relative to the block's input: 0.25 * 24, although the block expands 24 channels to 144.
    assert b3.blocks[1][0].se.conv_reduce.kernel.shape == (1, 1, 144, 6)


def test_lite_does_not_scale_its_first_and_last_stage():
    lite4 = registry.build_abstract("tf_efficientnet_lite4")
    assert [len(stage) for stage in lite4.blocks] == [1, 4, 4, 6, 6, 8, 1]
    assert (lite4.bn1.scale.shape[0], lite4.num_features) == (32, 1280)
    assert lite4.blocks[1][0].se is None


def test_initial_weights_have_the_published_distributions():
    model = EfficientNet(stages=B_STAGES[:1], head_features=320, num_classes=1000, rngs=nnx.Rngs(0))
    depthwise = model.blocks[0][0].conv_dw.kernel[...]  # the fan-out of a depthwise kernel is its 9 taps
    np.testing.assert_allclose(jnp.std(depthwise), np.sqrt(2 / 9), rtol=0.15)
    np.testing.assert_allclose(jnp.std(model.conv_head.kernel[...]), np.sqrt(2 / 320), rtol=0.05)
    routed = EfficientNet(stages=[Row("cc", 1, 3, 1, 24, 6, experts=4)], head_features=8, rngs=nnx.Rngs(0)).blocks[0][0]
    np.testing.assert_allclose(jnp.std(routed.conv_pw.weight[...]), np.sqrt(2 / 192), rtol=0.05)
    np.testing.assert_allclose(jnp.std(routed.conv_dw.weight[...]), np.sqrt(2 / 9), rtol=0.05)
    np.testing.assert_allclose(jnp.abs(routed.routing_fn.kernel[...]).max(), 36**-0.5, rtol=0.05)
    np.testing.assert_allclose(jnp.abs(model.classifier.kernel[...]).max(), 1000**-0.5, rtol=1e-2)
    assert not model.classifier.bias[...].any()
    assert (model.blocks[0][0].bn2.scale[...] == 1).all()


def test_stochastic_depth_rates():
    model = registry.build_abstract("test_efficientnet", drop_path=0.5)
    rates = [block.drop_path.rate for stage in model.blocks for block in stage]
    np.testing.assert_allclose(rates, np.arange(5) / 5 * 0.5)


def test_shortcuts_require_equal_shapes():
    for block in ("cn", "ds", "ir", "er"):
        options = {"stages": [Row(block, 2, 3, 2, 16, 1)], "stem_features": 16, "head_features": 16}
        model = nnx.eval_shape(lambda options=options: EfficientNet(**options, rngs=nnx.Rngs(0)))
        assert [b.has_shortcut for b in model.blocks[0]] == [False, True]


def test_repeat_rows():
    rows = (Row("ir", 1, 5, 2, 40), Row("ir", 3, 3, 1, 40))
    for factor, nearest, wanted in [
        (1, False, "5333"),
        (1.1, False, "53333"),
        (1.1, True, "5333"),
        (1.6, True, "553333"),
        (0.4, True, "533"),
    ]:
        assert "".join(str(row.kernel) for row in repeat_rows(rows, factor, nearest=nearest)) == wanted


def test_a_headless_model_returns_pooled_features_until_it_gets_a_head():
    model = random_model("test_efficientnet", num_classes=0)
    features = jnp.ones((2, 2, 2, 256))
    assert model.forward_head(features).shape == (2, 256)
    model.reset_classifier(7, rngs=nnx.Rngs(1))
    assert model.forward_head(features).shape == (2, 7)
    assert model.num_classes == 7
