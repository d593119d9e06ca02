"""jaxvision.analysis.cost against the numbers that timm publishes, and against hooks on timm's modules."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from support.reference import import_timm

from jaxvision.analysis.cost import model_info
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights import catalog

# Image size, parameters in millions, GMACs with attention's own products: timm's results and benchmark tables.
PUBLISHED = {
    "resnet18": (224, "11.69", "1.82"),
    "resnet34": (288, "21.80", "6.07"),
    "resnet50": (224, "25.56", "4.11"),
    "resnet101": (224, "44.55", "7.83"),
    "resnet152": (288, "60.19", "19.11"),
    "resnet50d": (224, "25.58", "4.35"),
    "wide_resnet50_2": (224, "68.88", "11.43"),
    "resnext50_32x4d": (224, "25.03", "4.26"),
    "seresnet50": (224, "28.09", "4.11"),
    "resnet50_gn": (224, "25.56", "4.14"),
    "resnetv2_50": (224, "25.55", "4.11"),
    "resnetv2_50d_evos": (224, "25.59", "4.33"),
    "resnetv2_50d_frn": (224, "25.59", "4.33"),
    "resnetv2_50x1_bit": (448, "25.55", "16.62"),
    "vit_tiny_patch16_224": (224, "5.72", "1.26"),
    "vit_small_patch16_384": (384, "22.20", "15.52"),
    "vit_small_patch32_224": (224, "22.88", "1.15"),
    "vit_base_patch16_224": (224, "86.57", "17.58"),
    "vit_base_patch32_384": (384, "88.30", "13.06"),
    "vit_large_patch16_224": (224, "304.33", "61.60"),
    "vit_large_patch32_384": (384, "306.63", "45.31"),
    "deit_tiny_patch16_224": (224, "5.72", "1.26"),
    "deit_small_distilled_patch16_224": (224, "22.44", "4.63"),
    "deit_base_distilled_patch16_384": (384, "87.63", "55.65"),
    "aimv2_large_patch14_224": (224, "309.20", "82.30"),
    "vit_so150m_patch16_reg4_map_256": (256, "141.48", "37.17"),
    "vit_small_r26_s32_224": (224, "36.43", "3.56"),
    "efficientnet_b0": (224, "5.29", "0.40"),
    "efficientnet_b0_gn": (224, "5.29", "0.42"),
    "efficientnet_b1": (240, "7.79", "0.71"),
    "efficientnet_b2": (256, "9.11", "0.89"),
    "efficientnet_b3": (288, "12.23", "1.63"),
    "efficientnet_b4": (320, "19.34", "3.13"),
    "tf_efficientnet_b0": (224, "5.29", "0.40"),
    "tf_efficientnet_b1": (240, "7.79", "0.71"),
    "tf_efficientnet_b2": (260, "9.11", "1.02"),
    "tf_efficientnet_b3": (300, "12.23", "1.87"),
    "tf_efficientnet_b4": (380, "19.34", "4.49"),
    "tf_efficientnet_lite0": (224, "4.65", "0.40"),
    "tf_efficientnet_lite1": (240, "5.42", "0.62"),
    "tf_efficientnet_lite2": (260, "6.09", "0.89"),
    "tf_efficientnet_lite3": (300, "8.20", "1.65"),
    "tf_efficientnet_lite4": (380, "13.01", "4.04"),
}

# Tracing takes a second or two per model: one of each kind by default, all of them with --slow.
ALWAYS = {
    "resnet50",
    "resnet50d",
    "resnext50_32x4d",
    "resnetv2_50d_evos",
    "resnetv2_50x1_bit",
    "vit_tiny_patch16_224",
    "vit_base_patch16_224",
    "deit_base_distilled_patch16_384",
    "aimv2_large_patch14_224",
    "efficientnet_b0",
    "efficientnet_b0_gn",
    "efficientnet_b3",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite4",
}

info = functools.cache(model_info)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in PUBLISHED]
)
def test_numbers_equal_timms(name):
    size, parameters, multiply_adds = PUBLISHED[name]
    total = info(name, size).total
    assert f"{total.parameters / 1e6:.2f}" == parameters
    assert f"{total.multiply_adds_with_attention / 1e9:.2f}" == multiply_adds


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.architectures())
def test_numbers_of_the_catalog(name):
    """Equal to timm's numbers to the second digit, which may differ by one.

    jaxvision counts the mean over tokens and timm does not; timm counts the projection of an attention pool's query and
    jaxvision does not.
    """
    for size, published in catalog.lookup(name).macs.items():
        assert model_info(name, size).total.multiply_adds_with_attention == pytest.approx(published, abs=1e7, rel=0)


# GMACs and activations (M) of timm's model cards, without attention's own products.
@pytest.mark.parametrize(
    ("name", "multiply_adds", "activations"),
    [("resnet50", "4.11", "11.1"), ("vit_base_patch16_224", "16.87", "16.5"), ("efficientnet_b3", "1.63", "21.5")],
)
def test_activations_equal_timms(name, multiply_adds, activations):
    total = info(name, PUBLISHED[name][0]).total
    assert f"{total.multiply_adds / 1e9:.2f}" == multiply_adds
    assert f"{total.activations / 1e6:.1f}" == activations


@pytest.mark.timm
@pytest.mark.parametrize(
    "name", ["test_resnet", "resnext50_32x4d", "test_vit", "test_efficientnet", "tf_efficientnet_lite0"]
)
def test_layers_count_what_hooks_on_timm_count(name):
    timm = import_timm()
    import torch

    model = timm.create_model(name).eval()
    counted = {"activations": 0, "multiply_adds": 0}

    def count(module, _, out):
        counted["activations"] += out.numel()
        if isinstance(module, torch.nn.Conv2d):
            counted["multiply_adds"] += out.numel() * module.weight[0].numel()
        else:
            counted["multiply_adds"] += out.numel() * module.in_features

    def count_norm(module, _, out):
        counted["multiply_adds"] += out.numel() * (5 if isinstance(module, torch.nn.LayerNorm) else 2)

    def count_pool(module, inputs, _):
        counted["multiply_adds"] += inputs[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.AdaptiveAvgPool2d):
            module.register_forward_hook(count_pool)
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
        elif isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm2d):
            module.register_forward_hook(count_norm)
    total = info(name).total
    with torch.no_grad():
        model(torch.zeros(1, 3, info(name).image_size, info(name).image_size))
    assert (total.activations, total.multiply_adds) == (counted["activations"], counted["multiply_adds"])
    assert total.parameters == sum(p.numel() for p in model.parameters())
    state = [v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")]
    assert total.weight_bytes == sum(4 * v.numel() for v in state)


def test_attention_is_counted_by_hand():
    total = info("vit_tiny_patch16_224").total
    n, d, depth = 14 * 14 + 1, 192, 12
    assert total.attention == 2 * n * n * d * depth


def test_stages_are_the_layer_groups_and_sum_to_the_total():
    table = info("test_efficientnet")
    names = [stage.name for stage in table.stages]
    assert names == ["conv_stem, bn1", *(f"blocks.{i}" for i in range(4)), "blocks.4, conv_head, bn2", "classifier"]
    for key in ("parameters", "weight_bytes", "multiply_adds", "activations", "activation_bytes"):
        assert all(getattr(stage, key) > 0 for stage in table.stages)
        assert sum(getattr(stage, key) for stage in table.stages) == getattr(table.total, key)
    # By hand: a 3x3 convolution from 3 to 24 channels at 80 x 80, and its norm.
    stem = table.stages[0]
    assert stem.parameters == 27 * 24 + 2 * 24
    assert stem.multiply_adds == 80 * 80 * 24 * (27 + 2)
    assert stem.weight_bytes == 4 * (27 * 24 + 4 * 24)
    assert stem.activation_bytes == 4 * stem.activations == 4 * 80 * 80 * 24


def test_a_model_instead_of_its_name():
    model = registry.build_abstract("test_resnet", num_classes=10, in_channels=1, dtype=jnp.bfloat16)
    table = model_info(model, 64)
    assert (table.name, table.image_size, table.in_channels, table.num_classes) == ("test_resnet", 64, 1, 10)
    assert table.total.activation_bytes == 2 * table.total.activations
    assert "64 x 64 x 1, 10 classes" in str(table)


def test_model_is_not_changed():
    model = registry.build_abstract("test_resnet", dropout=0.1)
    before = jax.tree.leaves(nnx.state(model))
    model_info(model)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True))


def test_errors():
    with pytest.raises(UserError, match="Did you mean 'resnet50'"):
        model_info("resnet_50")
    with pytest.raises(UserError, match="expected a multiple of the patch size"):
        model_info("vit_tiny_patch16_224", 225)
