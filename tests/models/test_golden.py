"""The logits of every architecture equal timm's, which are stored in tests/golden/golden.json.

`golden.fill` generates the weights from a seed and their names. They are written to a file in timm's format and loaded
by `load_timm`, so PyTorch is needed only to update the stored logits (tests/golden/make_golden.py). To run all tests
and write docs/parity.md from the results:

    pytest --slow -n 2 tests/models/test_golden.py --junitxml=golden.xml
    python tests/golden/make_parity.py golden.xml
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import fill
from safetensors.numpy import save_file
from support.kinds import KINDS, REPRESENTATIVE, every_architecture
from support.paths import TESTS

from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers.conv import Conv
from jaxvision.weights import timm

FILE = json.loads((TESTS / "golden" / "golden.json").read_text(encoding="utf-8"))
GOLDEN = FILE["golden"]


def cases() -> list:
    """Returns (architecture, size of the image) for each row; the small images of `REPRESENTATIVE` are quick."""
    found, native = [], set()
    for row in GOLDEN:
        architecture, size = row.split()
        first = architecture not in native  # at the architecture's own image size; a second row has a small image
        quick = architecture in REPRESENTATIVE and not first
        native.add(architecture)
        marks = [] if quick else [pytest.mark.slow]
        found.append(pytest.param(architecture, int(size), id=row.replace(" ", "-"), marks=marks))
    return found


def tensors_of(model: Model, powers: list[int]) -> dict[str, np.ndarray]:
    """Returns the tensors of a timm file for `model`, with values from `fill`."""
    shapes = {timm.timm_name(name): timm.timm_shape(name, leaf.shape) for name, leaf in timm.weights(model).items()}
    variances = sorted(name for name in shapes if name.endswith("running_var"))
    power = dict(zip(variances, powers, strict=True))
    return {name: fill.tensor(name, shape, power=power.get(name, 0)) for name, shape in shapes.items()}


def golden_model(architecture: str, size: int, folder: Path) -> Model:
    """Returns the model of a row, with weights loaded from a file in timm's format."""
    row = GOLDEN[f"{architecture} {size}"]
    model = registry.build_abstract(architecture, image_size=size, num_classes=1000, **row.get("options", {}))
    file = folder / "model.safetensors"
    save_file(tensors_of(model, row.get("powers", [])), file)
    timm.load_timm(model, file, head="load")
    file.unlink()  # pytest keeps tmp_path, and all files take 150 GB
    return model


def error_of(logits: Any, architecture: str, size: int) -> float:
    """Returns the largest difference from the row's logits or norm, in standard deviations of the logits."""
    row = GOLDEN[f"{architecture} {size}"]
    expected, logits = np.asarray(row["logits"]), np.asarray(logits, np.float64)
    error = np.abs(logits[:, : expected.shape[1]] - expected).max() / row["std"]
    # If all 1000 logits differ by e, their norm differs by at most e * sqrt(1000).
    norms = np.abs(np.linalg.norm(logits, axis=1) - row["norm"]).max() / row["std"] / np.sqrt(logits.shape[1])
    return max(error, norms)


def tolerance_of(architecture: str, size: int) -> float:
    """Returns the tolerance: five times PyTorch's error in float32, but at least 1e-5 and at most 1e-4."""
    return min(max(5 * GOLDEN[f"{architecture} {size}"]["torch_float32"], 1e-5), 1e-4)


def run(model: Model, size: int) -> jax.Array:
    """Returns the logits of the images of size `size` from `fill`."""
    graph, state = nnx.split(model)
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
        return forward(state, jnp.asarray(fill.images((2, size, size, 3))))


def test_every_architecture_has_golden_logits():
    assert {row.split()[0] for row in GOLDEN} == set(FILE["shapes"]) == set(registry.architectures())
    assert {architecture for architecture in KINDS for row in GOLDEN if row.startswith(f"{architecture} ")} == set(
        KINDS
    )


@pytest.mark.parametrize("architecture", every_architecture())
def test_names_and_shapes_of_all_tensors_match_timm(architecture: str):
    leaves = timm.weights(registry.build_abstract(architecture, num_classes=1000))
    shapes = [(timm.timm_name(name), timm.timm_shape(name, leaf.shape)) for name, leaf in leaves.items()]
    assert fill.digest(shapes) == FILE["shapes"][architecture]


@pytest.mark.parametrize(("architecture", "size"), cases())
def test_logits_match_timm(architecture: str, size: int, tmp_path: Path, record_property: Callable[[str, Any], None]):
    error = error_of(run(golden_model(architecture, size, tmp_path), size), architecture, size)
    record_property("error", f"{architecture} {size} {error:.2g}")
    assert error < tolerance_of(architecture, size)


# --- The comparison detects errors ---

SMALL_CASES = [
    ("test_resnet", 75),
    pytest.param("resnet18", 75, marks=pytest.mark.slow),
    pytest.param("resnetv2_18", 75, marks=pytest.mark.slow),
    ("test_vit", 64),
    pytest.param("test_vit3", 64, marks=pytest.mark.slow),
    ("test_efficientnet", 75),
]


@pytest.mark.parametrize(("architecture", "size"), SMALL_CASES)
def test_a_change_of_one_percent_in_any_tensor_is_detected(architecture: str, size: int, tmp_path: Path):
    model = golden_model(architecture, size, tmp_path)
    graph, _ = nnx.split(model)
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    images = jnp.asarray(fill.images((2, size, size, 3)))
    undetected = []
    for name, leaf in timm.weights(model).items():
        value = leaf.get_value()
        leaf.set_value(value * 1.01)
        if error_of(forward(nnx.state(model), images), architecture, size) < tolerance_of(architecture, size):
            undetected.append(name)
        leaf.set_value(value)
    assert error_of(forward(nnx.state(model), images), architecture, size) < tolerance_of(architecture, size)
    assert undetected == []


def change(model: Model, kind: type, **attributes: Any) -> None:
    """Sets attributes of every module of type `kind` that has them with another value."""
    changed = 0
    for _, module in nnx.iter_graph(model):
        for name, value in attributes.items():
            if isinstance(module, kind) and getattr(module, name, value) != value:
                setattr(module, name, value)
                changed += 1
    assert changed


MISTAKES = [
    # The epsilon of norms: PyTorch's or Flax's default instead of the family's.
    ("resnet18", 75, nnx.Module, {"epsilon": 1e-3}),
    ("test_vit", 64, nnx.Module, {"epsilon": 1e-5}),
    ("test_efficientnet", 75, nnx.Module, {"epsilon": 1e-3}),
    pytest.param("tf_efficientnet_b0", 75, nnx.Module, {"epsilon": 1e-5}, marks=pytest.mark.slow),
    pytest.param("resnetv2_50d_gn", 75, nnx.Module, {"epsilon": 1e-6}, marks=pytest.mark.slow),
    # The padding: TensorFlow's instead of PyTorch's, and vice versa.
    ("resnet18", 75, Conv, {"padding": "same"}),
    ("test_efficientnet", 75, Conv, {"padding": "same"}),
    pytest.param("tf_efficientnet_b0", 75, Conv, {"padding": "torch"}, marks=pytest.mark.slow),
    # The activation.
    ("test_vit", 64, nnx.Module, {"activation": "gelu_tanh"}),
    ("test_vit", 64, nnx.Module, {"activation": "quick_gelu"}),
    pytest.param("vit_base_patch16_clip_quickgelu_224", 64, nnx.Module, {"activation": "gelu"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("architecture", "size", "kind", "attributes"), MISTAKES)
def test_wrong_arithmetic_is_detected(
    architecture: str, size: int, kind: type, attributes: dict[str, Any], tmp_path: Path
):
    model = golden_model(architecture, size, tmp_path)
    change(model, kind, **attributes)
    assert error_of(run(model, size), architecture, size) > tolerance_of(architecture, size)
