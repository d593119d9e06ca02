"""Weights of efficientnet-pytorch and geffnet, compared with these libraries.

Tests are skipped where a library is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.against_timm import randomized
from support.weight_files import abstract, logits

from jaxvision.create import create_model
from jaxvision.weights import files, timm

pytestmark = pytest.mark.timm


def names_of(state: Any, path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes under which a state_dict is loaded; the file holds one number per tensor."""
    import torch

    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in state.items()}, path)
    shapes = files.open_weights(path).shapes
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def names_in(architecture: str) -> dict[str, tuple[int, ...]]:
    leaves = timm.weights(abstract(architecture)).items()
    return {timm.timm_name(name): timm.timm_shape(name, leaf.shape) for name, leaf in leaves}


@pytest.mark.parametrize("size", ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "l2"])
def test_every_model_of_efficientnet_pytorch(size, tmp_path):
    import torch

    library = pytest.importorskip("efficientnet_pytorch")
    with torch.device("meta"):
        state = library.EfficientNet.from_name(f"efficientnet-{size}").state_dict()
    assert names_of(state, tmp_path / "model.pth") == names_in(f"tf_efficientnet_{size}")


def logits_of(theirs: Any, architecture: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of a model of another library, and of ours with its weights."""
    import torch

    theirs = randomized(theirs.eval())
    torch.save(theirs.state_dict(), path)
    images = np.random.default_rng(0).standard_normal((2, 95, 128, 3), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return expected, logits(create_model(architecture, checkpoint_path=path), images)


@pytest.mark.parametrize("size", ["b0", "b3"])
def test_logits_of_efficientnet_pytorch(size, tmp_path):
    import torch

    library = pytest.importorskip("efficientnet_pytorch")
    torch.manual_seed(0)
    # Without an image size the library pads each image by its own size, as TensorFlow does.
    theirs = library.EfficientNet.from_name(f"efficientnet-{size}", image_size=None)
    expected, found = logits_of(theirs, f"tf_efficientnet_{size}", tmp_path / "model.pth")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("architecture", ["tf_efficientnet_lite0", "mixnet_s", "mobilenetv2_100"])
def test_names_and_logits_of_geffnet(architecture, tmp_path):
    """Its names are timm's."""
    import torch

    library = pytest.importorskip("geffnet")
    torch.manual_seed(0)
    expected, found = logits_of(library.create_model(architecture), architecture, tmp_path / "model.pth")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
