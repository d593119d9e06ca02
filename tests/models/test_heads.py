"""Heads compared with timm: `reset_classifier`, other poolings, and dropout before the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import assert_close, channels_last, fill, images, pair, random_model
from support.reference import import_timm

import jaxvision
from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights.timm import timm_name, weights

forward = jax.jit(lambda model, x: model(x))


@pytest.mark.timm
@pytest.mark.parametrize(
    ("name", "options", "resets"),
    [
        ("test_resnet", {}, [(5, "catavgmax"), (4, None), (0, ""), (3, "max")]),
        ("resnetv2_18", {}, [(5, "catavgmax"), (4, None), (0, ""), (3, "avg"), (2, "")]),
        ("test_efficientnet", {}, [(5, "catavgmax"), (4, None), (0, ""), (3, "avgmax")]),
        ("test_vit", {"img_size": 64}, [(5, "avg"), (4, None), (0, ""), (3, "max"), (2, "token"), (2, "avgmax")]),
        # Built with a norm after the pooling, which keeps its place.
        ("test_vit", {"img_size": 64, "global_pool": "avg"}, [(5, "token"), (0, "")]),
        # Attention pooling is removed permanently.
        ("test_vit3", {"img_size": 64}, [(5, "map"), (4, None), (3, "avg")]),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 1}, [(5, None), (4, "token"), (0, None)]),
    ],
)
def test_reset_classifier_matches_timm(name: str, options: dict[str, Any], resets: list[Any]) -> None:
    import torch

    theirs, ours = pair(name, **options)
    tensor, _ = images(2, 64, 64, 3)
    with torch.no_grad():
        features = theirs.forward_features(tensor)
    for num_classes, pool in resets:
        theirs.reset_classifier(num_classes, pool)
        ours.reset_classifier(num_classes, rngs=nnx.Rngs(0), global_pool=pool)
        state = theirs.state_dict()
        assert {timm_name(leaf) for leaf in weights(ours)} == {k for k in state if "num_batches" not in k}, pool
        with torch.no_grad():
            wanted = theirs.eval().forward_head(features)
        assert_close(fill(ours, state).forward_head(jnp.asarray(channels_last(features))), channels_last(wanted))
        assert ours.num_classes == theirs.num_classes == num_classes


@pytest.mark.parametrize("name", ["test_resnet", "resnetv2_18", "test_efficientnet", "test_vit"])
def test_reset_classifier_changes_only_the_head(name: str) -> None:
    model = registry.build_abstract(name)
    before = {leaf: variable.get_raw_value() for leaf, variable in weights(model).items()}
    model.reset_classifier(7, rngs=nnx.Rngs(0), global_pool="max")
    after = {leaf: variable.get_raw_value() for leaf, variable in weights(model).items()}
    changed = {leaf.rpartition(".")[0] for leaf in after if after[leaf] is not before[leaf]}
    assert changed == set(model.classifier_names)
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    ("name", "num_classes", "pool", "message"),
    [
        ("test_resnet", 5, "", "Set num_classes=0"),
        ("test_resnet", 5, "token", "global_pool: got 'token', expected one of"),
        ("resnetv2_18", 5, "mean", "global_pool: got 'mean', expected one of"),
        ("test_efficientnet", 5, "avgmx", "Did you mean 'avgmax'"),
        ("test_vit", 5, "mean", "global_pool: got 'mean', expected one of"),
        ("test_vit", 5, "map", "Create it with global_pool='map'"),
        ("test_vit4", 5, "token", "got 'token' with class_token=False"),
        ("deit_tiny_distilled_patch16_224", 5, "avg", "distilled: got global_pool='avg'"),
    ],
)
def test_an_unsupported_pooling_changes_nothing(name: str, num_classes: int, pool: str, message: str) -> None:
    model = registry.build_abstract(name)
    before = nnx.graphdef(model)
    with pytest.raises(UserError, match=message):
        model.reset_classifier(num_classes, rngs=nnx.Rngs(0), global_pool=pool)
    assert nnx.graphdef(model) == before


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("test_resnet", "catavgmax"),
        pytest.param("resnetv2_18", "max", marks=pytest.mark.slow),
        ("test_vit", "avg"),
        pytest.param("test_vit2", "max", marks=pytest.mark.slow),
        pytest.param("test_vit3", "avg", marks=pytest.mark.slow),
    ],
)
def test_an_export_stores_the_new_pooling(name: str, pool: str, tmp_path: Path) -> None:
    model = random_model(name, num_classes=5, **({"image_size": 32} if "vit" in name else {}))
    model.reset_classifier(2, rngs=nnx.Rngs(0), global_pool=pool)
    classifier = jaxvision.Classifier(model, ("cat", "dog"), Preprocess(image_size=32))
    jaxvision.save_classifier(tmp_path, classifier)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    np.testing.assert_array_equal(forward(jaxvision.load_classifier(tmp_path).model, x), forward(model, x))


@pytest.mark.timm
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_loads_an_export_with_the_new_pooling(name: str, tmp_path: Path) -> None:
    import torch

    model = random_model(name, num_classes=5)
    size = model.image_size
    model.reset_classifier(2, rngs=nnx.Rngs(0), global_pool="avgmax")
    jaxvision.save_classifier(tmp_path, jaxvision.Classifier(model, ("cat", "dog"), Preprocess(image_size=size)))
    tensor, array = images(1, size, size, 3)
    theirs = import_timm().create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert_close(forward(model, array), theirs(tensor))


# --- dropout before the head ---


@pytest.mark.timm
def test_dropout_rates_match_timm() -> None:
    """timm's drop_rate is `head_dropout` of a ViT and `dropout` of a convnet."""
    timm = import_timm()
    vit = jaxvision.create_model("test_vit", image_size=32, head_dropout=0.3, dropout=0.1, attention_dropout=0.2)
    theirs = timm.create_model(
        "test_vit", img_size=32, drop_rate=0.3, pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.2
    )
    wanted = {path: m.p for path, m in theirs.named_modules() if type(m).__name__ == "Dropout"}
    got = {".".join(map(str, path)): m.rate for path, m in nnx.iter_modules(vit) if isinstance(m, nnx.Dropout)}
    assert got == wanted
    assert vit.head_drop.rate == 0.3
    convnet = jaxvision.create_model("test_resnet", dropout=0.3)
    assert convnet.drop.rate == timm.create_model("test_resnet", drop_rate=0.3).drop_rate


def test_dropout_before_the_head_is_active_only_in_training() -> None:
    model = jaxvision.create_model("test_vit", image_size=32, head_dropout=0.5)
    features = jnp.ones((2, 5, 64))
    assert (model.forward_head(features, pre_logits=True) == 1).all()
    dropped = jaxvision.train_view(model).forward_head(features, pre_logits=True)
    assert set(np.unique(dropped)) == {0.0, 2.0}


def test_only_vits_have_head_dropout() -> None:
    from jaxvision.models import create_resnet, create_vit

    assert create_vit({"architecture": "test_vit", "head_dropout": 0.1}).head_drop.rate == 0.1
    with pytest.raises(UserError, match="head_dropout: got 1, expected a probability"):
        jaxvision.create_model("test_vit", head_dropout=1)
    with pytest.raises(
        UserError, match=r"model 'test_resnet': got 'head_dropout', expected an argument .*Did you mean 'dropout'"
    ):
        jaxvision.create_model("test_resnet", head_dropout=0.1)
    with pytest.raises(UserError, match="create_resnet: got 'head_dropout', expected an argument of test_resnet"):
        create_resnet({"architecture": "test_resnet", "head_dropout": 0.1})


@pytest.mark.parametrize("name", ["test_resnet", "resnetv2_18", "test_efficientnet"])
def test_num_features_is_the_input_width_of_the_head(name: str) -> None:
    model = jaxvision.create_model(name, global_pool="catavgmax", num_classes=4)
    images = jnp.zeros((1, 64, 64, 3))

    def pre_logits(model: nnx.Module, images: jax.Array) -> jax.Array:
        return model.forward_head(model.forward_features(images), pre_logits=True)

    assert jax.eval_shape(pre_logits, model, images).shape == (1, model.num_features)
    model.reset_classifier(3, rngs=nnx.Rngs(0), global_pool="avg")
    assert jax.eval_shape(pre_logits, model, images).shape == (1, model.num_features)
