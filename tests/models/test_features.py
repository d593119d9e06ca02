"""``create_model(..., features_only=True)``: feature maps equal timm's, and unused layers are removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.against_timm import assert_close, channels_last, images, random_model, randomized
from support.reference import import_timm

import jaxvision
from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.features import FeatureExtractor
from jaxvision.models.layers.frozen import Frozen
from jaxvision.weights.timm import save_timm

forward = jax.jit(lambda model, x: model(x))
TINY = ["test_resnet", "resnetv2_18", "test_vit", "test_efficientnet"]


def parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a function that saves a full timm model with random weights and returns the path."""

    def save(name: str, **options: Any) -> Path:
        from safetensors.torch import save_file

        path = tmp_path_factory.mktemp(name) / "model.safetensors"
        save_file(randomized(import_timm().create_model(name, **options)).state_dict(), path)
        return path

    return save


@pytest.mark.timm
@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("test_resnet", [None, (1, -2)]),
        ("resnetrs50", [(0,)]),  # the pool in its stem has weights
        ("resnetv2_18", [None, (-4, 3)]),
        ("test_efficientnet", [None, [3, 1], 2]),
        ("efficientnet_x_b3", [(0, 2)]),  # its first level is the stem
        ("test_vit", [None, (-2, 1), 2]),
        ("test_vit3", [None]),  # attention pooling, a register
        ("deit_tiny_distilled_patch16_224", [None]),
        ("vit_tiny_r_s16_p8_224", [(1, -1)]),
    ],
)
def test_maps_match_timm(name: str, choices: list[Any], file: Any) -> None:
    import torch

    vit = registry.variant(name).family == "vit"
    path = file(name, **({"img_size": 64} if vit else {}))
    tensor, array = images(1, 64, 64, 3)
    for choice in choices:
        theirs = import_timm().create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(path)},
            features_only=True,
            **({} if choice is None else {"out_indices": choice}),
            **({"img_size": 64} if vit else {}),
        )
        ours = jaxvision.create_model(
            name,
            checkpoint_path=path,
            features_only=True,
            out_indices=choice,
            **({"image_size": 64} if vit else {}),
        )
        with torch.no_grad():
            wanted = theirs.eval()(tensor)
        got = forward(ours, array)
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, channels_last(b))
        wanted_info = sorted(  # timm lists them in the order of out_indices, but returns its maps finest first
            zip(
                *(getattr(theirs.feature_info, what)() for what in ("reduction", "channels", "module_name")),
                strict=True,
            )
        )
        assert sorted((level.stride, level.channels, level.name) for level in ours.feature_info) == wanted_info
        count = sum(p.numel() for p in theirs.parameters())
        # timm's EfficientNet keeps the stages after the last requested level.
        assert parameters(ours) == count or (parameters(ours) < count and "efficientnet" in name)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("out_indices", [(0,), (-2, 1)])
def test_maps_match_the_whole_model(name: str, out_indices: Any, tmp_path: Path) -> None:
    options = {"image_size": 64} if name == "test_vit" else {}
    whole = random_model(name, **options)
    save_timm(whole, tmp_path / "model.safetensors")
    features = jaxvision.create_model(
        name, checkpoint_path=tmp_path, features_only=True, out_indices=out_indices, num_classes=7, **options
    )
    levels = len(whole.feature_info)
    chosen = sorted(i % levels for i in out_indices)
    assert features.out_indices == tuple(chosen)
    assert features.feature_info == tuple(whole.feature_info[i] for i in chosen)
    x = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    wanted = jax.jit(lambda model, x: model.forward_intermediates(x, chosen, intermediates_only=True))(whole, x)
    got = forward(features, x)
    assert isinstance(got, tuple)
    for a, b, level in zip(got, wanted, features.feature_info, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        assert a.shape == (1, 64 // level.stride, 64 // level.stride, level.channels)
    remaining = {name.split(".kernel")[0] for name in tree.names(nnx.state(features, nnx.Param))}
    heads = tuple(f"model.{name}" for name in whole.classifier_names)
    assert not [name for name in remaining if name.startswith((*heads, "model.norm.", "model.conv_head"))]
    assert not [name for name in remaining if name.startswith(f"model.{whole.feature_info[-1].name}")]


@pytest.mark.parametrize(
    "name",
    [
        "resnet50d",
        "resnetrs50",
        "resnetv2_50x1_bit",
        "efficientnet_b0",
        "mobilenetv1_100",
        "tf_mixnet_s",
        "vit_base_patch16_siglip_224",
        "vit_pwee_patch16_reg1_gap_256",
        "deit_tiny_distilled_patch16_224",
        "vit_base_mci_224",
    ],
)
def test_maps_have_the_shapes_in_feature_info(name: str) -> None:
    features = FeatureExtractor(registry.build_abstract(name))
    size = features.model.image_size
    maps = nnx.eval_shape(lambda model, x: model(x), features, jnp.zeros((1, size, size, 3)))
    assert [x.shape[1:] for x in maps] == [
        (size // level.stride, size // level.stride, level.channels) for level in features.feature_info
    ]
    vit = features.model.family == "vit"
    assert [level.stride for level in features.feature_info] == ([16] * 3 if vit else [2, 4, 8, 16, 32])


def test_images_that_are_not_square() -> None:
    features = jaxvision.create_model("test_vit", features_only=True, image_size=(32, 96), out_indices=1)
    assert [x.shape for x in features(jnp.zeros((1, 32, 96, 3)))] == [(1, 2, 6, 64)]


@pytest.mark.skipif(not flax.config.nnx_graph_mode, reason="nnx.grad of a module with random streams needs graph mode")
@pytest.mark.parametrize(
    ("name", "out_indices"),
    [
        ("test_resnet", None),
        pytest.param("test_resnet", (0,), marks=pytest.mark.slow),
        ("test_vit", None),
        pytest.param("test_efficientnet", 3, marks=pytest.mark.slow),
    ],
)
def test_freezing_and_training(name: str, out_indices: Any) -> None:
    """Frozen layers and their statistics stay the same, and the others train. Views share their variables."""
    options = {"image_size": 32} if name == "test_vit" else {}
    features = jaxvision.create_model(
        name, features_only=True, out_indices=out_indices, freeze_layers=1, drop_path=0.1, **options
    )
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    before = jax.tree.map(np.asarray, nnx.state(features, nnx.Any(nnx.Param, nnx.BatchStat, Frozen)))
    optimizer = nnx.Optimizer(features, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(features: FeatureExtractor, optimizer: nnx.Optimizer) -> None:
        view = jaxvision.train_view(features)
        grads = nnx.grad(lambda model: sum(jnp.mean(y**2) for y in model(x)))(view)
        optimizer.update(view, grads)

    step(features, optimizer)
    after = jax.tree.map(np.asarray, nnx.state(features, nnx.Any(nnx.Param, nnx.BatchStat, Frozen)))
    changed = {
        leaf
        for leaf, a, b in zip(tree.names(before), jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        if not np.array_equal(a, b)
    }
    stem = registry.build_abstract(name, **options).layer_groups(coarse=True)[0]
    groups = tree.match([leaf.removeprefix("model.") for leaf in tree.names(before)], [(stem, True)], default=False)
    assert all(not groups[leaf.removeprefix("model.")] for leaf in changed)
    assert changed or set(groups.values()) == {True}  # the model is only the stem, which is frozen
    jaxvision.freeze(features.model, backbone=True)
    assert not jax.tree.leaves(nnx.state(features, nnx.Param))


@pytest.mark.parametrize("name", ["resnetv2_18", "test_efficientnet"])
def test_layer_groups_of_a_model_cut_after_its_stem(name: str) -> None:
    model = FeatureExtractor(registry.build_abstract(name), (0,)).model
    for coarse in (False, True):
        names = tree.names(nnx.state(model, nnx.Param))
        groups = model.layer_groups(coarse=coarse)
        assert tree.match(names, [(pattern, True) for pattern in groups]) == dict.fromkeys(names, True)


@pytest.mark.parametrize(
    ("out_indices", "message"),
    [
        (
            7,
            r"^out_indices: got 7, .* 1 to 5, .* levels of test_resnet are 0 act1 \(stride 2\), 1 layer1 .*32\)\.$",
        ),
        (
            (0, 5),
            "got the level 5, expected a level from 0 to 4 or from -5 to -1. The levels of test_resnet are 0 act1",
        ),
        ((-6,), "got the level -6"),
        ("layer4", "got the level 'l', .* test_resnet are 0 act1"),
        ((1.0,), r"got the level 1\.0"),
        ((), r"got \(\), expected at least one level"),
        (0, "got 0, expected a number from 1 to 5"),
    ],
)
def test_missing_levels_are_errors(out_indices: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        jaxvision.create_model("test_resnet", features_only=True, out_indices=out_indices)


def test_options_that_contradict_each_other_are_errors() -> None:
    with pytest.raises(UserError, match="Pass features_only=True"):
        jaxvision.create_model("test_resnet", out_indices=2)
    with pytest.raises(UserError, match="a classifier has a head"):
        jaxvision.load_classifier("test_resnet", features_only=True)


def test_head_options_have_no_effect() -> None:
    """As in timm, even a combination of options that a model with a head would reject is accepted."""
    features = jaxvision.create_model("test_resnet", features_only=True, num_classes=10, global_pool="", out_indices=1)
    assert parameters(features) == parameters(jaxvision.create_model("test_resnet", features_only=True, out_indices=1))
