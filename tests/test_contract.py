"""Properties of every architecture. The registry lists new ones, so this file does not change with them.

Golden logits, names and shapes are in test_golden.py, the file format with real timm in tests/weights.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.kinds import every_architecture
from support.reference import import_timm

from jaxvision import tree
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.mode import train_view
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import state_shardings
from jaxvision.train import optim
from jaxvision.weights import catalog
from jaxvision.weights.timm import load_timm, save_timm

TINY = {"resnet": "test_resnet", "vit": "test_vit", "efficientnet": "test_efficientnet"}


def abstract(architecture: str, **options) -> nnx.Module:
    return registry.build_abstract(architecture, **options)


@jax.jit
def features_and_logits(model: nnx.Module, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return model.forward_features(images), model(images)


def parameters(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    state = nnx.state(model, nnx.Param)
    return dict(zip(tree.names(state), (x.shape for x in jax.tree.leaves(state)), strict=True))


@pytest.mark.parametrize("architecture", every_architecture())
def test_another_number_of_classes_changes_only_the_head(architecture: str) -> None:
    model = abstract(architecture)
    many, few = parameters(model), parameters(abstract(architecture, num_classes=7))
    assert many.keys() == few.keys()
    changed = {name.rpartition(".")[0] for name in many if many[name] != few[name]}
    assert changed == set(model.classifier_names)
    assert not any(
        name.startswith(model.classifier_names) for name in parameters(abstract(architecture, num_classes=0))
    )


@pytest.mark.parametrize("architecture", every_architecture())
def test_every_table_covers_every_leaf(architecture: str) -> None:
    model = abstract(architecture)
    leaves = list(parameters(model))
    assert set(optim.decay_mask(model)) == set(leaves)
    assert set(optim.layer_scales(model, 0.5)) == set(leaves)
    for coarse in (False, True):
        groups = [(pattern, i) for i, pattern in enumerate(model.layer_groups(coarse=coarse))]
        matched = tree.match(leaves, groups, default=len(groups))  # raises if a pattern matches nothing
        head = {name for name, group in matched.items() if group == len(groups)}
        assert any(name.startswith(model.classifier_names) for name in head)
    shardings = jax.tree.leaves(state_shardings({"model": nnx.state(model)}, make_mesh()))
    assert len(shardings) == len(jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize("architecture", every_architecture())
def test_catalog_and_model_agree(architecture: str) -> None:
    model, entry = abstract(architecture), catalog.lookup(architecture)
    assert entry.architecture == model.architecture == architecture
    names = {name.rpartition(".")[0] for name in parameters(model)}
    assert model.first_conv in names
    assert set(model.classifier_names) <= names


@pytest.mark.parametrize("family", TINY)
def test_logits_features_and_head_fit_together(family: str) -> None:
    model = create_model(TINY[family], num_classes=5, image_size=64, seed=3)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    features, logits = features_and_logits(model, images)
    assert logits.shape == (2, 5)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(model.forward_head(features), logits, rtol=1e-6, atol=1e-6)
    assert model.forward_head(features, pre_logits=True).ndim == 2
    np.testing.assert_array_equal(features_and_logits(model, images)[1], logits)  # evaluation is deterministic


@pytest.mark.parametrize("family", TINY)
def test_bfloat16_computes_in_it_and_keeps_float32_parameters(family: str) -> None:
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    full = create_model(TINY[family], num_classes=5, image_size=64)
    half = create_model(TINY[family], num_classes=5, image_size=64, dtype="bfloat16")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(half, nnx.Param)))
    (_, a), (features, b) = (features_and_logits(model, images) for model in (full, half))
    assert features.dtype == jnp.bfloat16
    a, b = np.asarray(a), np.asarray(b, np.float32)
    # bfloat16 has 8 bits: a few percent of the logits' scale after a dozen layers.
    assert np.abs(a - b).max() <= 0.05 * max(np.abs(a).max(), 1e-3) + 1e-3


@pytest.mark.parametrize("family", TINY)
def test_gradients_are_finite_and_reach_every_parameter(family: str) -> None:
    model = train_view(create_model(TINY[family], num_classes=5, image_size=64, drop_path=0.1))
    images = jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    # The last scale of a residual branch starts at zero, which makes the gradients before it zero.
    for path, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Param) and path[-1] in ("scale", "gamma"):
            leaf[...] = jnp.ones_like(leaf[...])

    @jax.jit
    def gradient(params, rest):
        def loss(params):
            merged = nnx.merge(structure, params, rest, copy=True)
            return (merged(images) ** 2).sum()

        return jax.grad(loss)(params)

    structure, params, rest = nnx.split(model, nnx.Param, ...)
    grads = gradient(params, rest)
    for name, g in zip(tree.names(grads), jax.tree.leaves(grads), strict=True):
        assert np.isfinite(g).all(), name
        # The gradient of a bias before BatchNorm, or of the keys of a softmax, is zero except for rounding.
        assert np.abs(g).max() > 0, name


@pytest.mark.parametrize("family", TINY)
def test_one_trace_serves_every_call(family: str) -> None:
    model = create_model(TINY[family], num_classes=5, image_size=32, **({"patch_size": 8} if family == "vit" else {}))
    traces = 0

    @jax.jit
    def forward(model, images):
        nonlocal traces
        traces += 1
        return model(images)

    for seed in range(3):
        forward(model, jax.random.normal(jax.random.key(seed), (1, 32, 32, 3)))
    assert traces == 1


@pytest.mark.parametrize("family", TINY)
def test_a_saved_file_loads_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = create_model(TINY[family], num_classes=5, seed=1)
    save_timm(model, tmp_path / "model.safetensors")
    again = load_timm(abstract(TINY[family], num_classes=5), tmp_path / "model.safetensors")
    for a, b in zip(
        jax.tree.leaves(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))),
        jax.tree.leaves(nnx.state(again, nnx.Any(nnx.Param, nnx.BatchStat))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("family", TINY)
def test_frozen_leaves_stay_frozen_in_any_loop(family: str) -> None:
    """A plain training loop changes neither frozen parameters nor frozen statistics."""
    import optax

    model = create_model(TINY[family], num_classes=5, image_size=32, freeze_backbone=True,
                         **({"patch_size": 8} if family == "vit" else {}))  # fmt: skip
    before = jax.tree.map(np.asarray, nnx.state(model))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    moments = [x for x in jax.tree.leaves(nnx.state(optimizer)) if getattr(x, "ndim", 0) > 0]
    assert len(moments) == 2 * len(model.classifier_names) * 2  # mu and nu of kernel and bias

    @nnx.jit
    def step(model, optimizer, images):
        view = train_view(model)
        grads = nnx.grad(lambda m: (m(images) ** 2).sum())(view)
        optimizer.update(view, grads)

    step(model, optimizer, jax.random.normal(jax.random.key(0), (2, 32, 32, 3)))
    after = jax.tree.map(np.asarray, nnx.state(model))
    for name, a, b in zip(tree.names(before), jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if "rngs" in name:
            continue
        same = np.array_equal(a, b)
        assert same != name.startswith(model.classifier_names), name


@pytest.mark.parametrize("family", TINY)
def test_an_unknown_key_is_an_error_that_names_the_nearest(family: str) -> None:
    import jaxvision.models
    from jaxvision.errors import UserError

    create = getattr(jaxvision.models, f"create_{family}")
    with pytest.raises(UserError, match="Did you mean 'num_classes'"):
        create({"architecture": TINY[family], "num_clases": 3})
    with pytest.raises(UserError, match=f"Did you mean.*'{TINY[family]}'"):
        create({"architecture": TINY[family].replace("test_", "tset_")})
    with pytest.raises(UserError, match="architecture"):
        create({"num_classes": 3})
    other = "resnet50" if family == "vit" else "vit_tiny_patch16_224"
    with pytest.raises(UserError, match=f"architecture: got .* expected a model of the family {family}"):
        create({"architecture": other})


@pytest.mark.timm
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("resnet18", {"widths": (16, 32, 64, 128), "depths": [1, 1, 1, 1]}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 3, "embed_dim": 96, "image_size": 64}),
        ("deit_tiny_distilled_patch16_224", {"image_size": 64}),
    ],
)
def test_timm_reads_an_export_of_another_shape(architecture: str, options: dict, tmp_path: Path) -> None:
    import torch

    model = create_model(architecture, num_classes=4, in_channels=1, **options)
    preprocess = Preprocess(image_size=64, mean=(0.5,), std=(0.5,))
    save_classifier(tmp_path, Classifier(model, tuple("abcd"), preprocess))
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
    ours = np.asarray(model(images))
    np.testing.assert_array_equal(load_classifier(tmp_path).model(images), ours)
    reference = import_timm().create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        theirs = reference(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 0.1))


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": "10"}, "num_classes: got '10', expected an integer, 0 or more"),
        ({"image_size": 64.0}, "image_size: got 64.0, expected an integer, 1 or more"),
        ({"in_channels": 0}, "in_channels: got 0, expected an integer, 1 or more"),
        ({"freeze_layers": -1}, "freeze_layers: got -1, expected an integer, 0 or more"),
        ({"dropout": "0.1"}, "dropout: got '0.1', expected a probability in \\[0, 1\\)"),
    ],
)
def test_arguments_of_the_wrong_type(family: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_model(TINY[family], **options)


@pytest.mark.parametrize("family", TINY)
def test_images_of_the_wrong_shape_or_dtype(family: str) -> None:
    model = create_model(TINY[family])
    size = model.image_size
    with pytest.raises(UserError, match=r"expected \[b, h, w, 3\]. Put the channels last"):
        model(jnp.zeros((1, 3, size, size)))
    with pytest.raises(UserError, match=r"images: got uint8, expected normalized floats"):
        model(jnp.zeros((1, size, size, 3), jnp.uint8))
