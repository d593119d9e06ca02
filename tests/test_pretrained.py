"""A real pretrained model, tf_efficientnet_lite0, on a dozen photographs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image
from support.photos import GOLDEN, NAME, PHOTOS, label, lite0, needs_lite0
from support.weight_files import logits

import jaxvision
from jaxvision import cli
from jaxvision.analysis import grad_cam
from jaxvision.classifier import save_classifier
from jaxvision.weights import files, packages

pytestmark = needs_lite0


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.asarray(lite0().images(PHOTOS))


def test_logits_and_predictions_are_those_of_timm(images):
    """timm's transform, model and arithmetic, on PyTorch: every photograph is predicted as its label."""
    found = logits(lite0().model, images)
    for photo, row in zip(PHOTOS, found, strict=True):
        expected = GOLDEN[photo.name]
        assert np.argsort(-row)[:5].tolist() == expected["top5"], photo
        assert row.argmax() == label(photo)
        values = np.asarray(list(expected["logits"].values()))
        difference = np.abs(row[[int(index) for index in expected["logits"]]] - values)
        assert difference.max() <= 1e-4 * np.abs(values).max(), photo


#: Where the object is, as seen by eye: left, top, right, bottom, as fractions of the photograph. The boxes cover 20 to
#: 37 % of it, so four maps without a meaning point into all of them once in a hundred times.
BOXES = {
    "n02056570_king_penguin.jpg": (0.36, 0.18, 0.66, 0.92),
    "n02279972_monarch_butterfly.jpg": (0.20, 0.28, 0.66, 0.96),
    "n02690373_airliner.jpg": (0.10, 0.28, 1.00, 0.62),
    "n02814860_lighthouse.jpg": (0.38, 0.10, 0.86, 0.98),
}


@pytest.mark.parametrize("name", BOXES)
def test_grad_cam_points_at_the_object(name, images):
    """The pointing game of Zhang et al. 2016: the largest value of the map lies on the object."""
    (index,) = (i for i, photo in enumerate(PHOTOS) if photo.name == name)
    heat = np.asarray(grad_cam(lite0().model, images[index : index + 1]))[0]
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    with Image.open(PHOTOS[index]) as opened:
        width, height = opened.size
    crop = 0.875 * min(width, height)  # the model sees the square of this side at the center
    x = 0.5 + ((column + 0.5) / heat.shape[1] - 0.5) * crop / width
    y = 0.5 + ((row + 0.5) / heat.shape[0] - 0.5) * crop / height
    left, top, right, bottom = BOXES[name]
    assert left <= x <= right
    assert top <= y <= bottom


def test_fine_tuning_lowers_the_loss(images):
    """A new head of twelve classes and the last layers of the backbone, for a few steps on small copies."""
    model = jaxvision.create_model(NAME, pretrained=True, num_classes=len(PHOTOS), freeze_layers=7)
    small = jax.image.resize(jnp.asarray(images), (len(images), 96, 96, 3), "linear")
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    def loss_of(model: nnx.Module) -> jax.Array:
        labels = jnp.arange(len(PHOTOS))
        return optax.softmax_cross_entropy_with_integer_labels(model(small), labels).mean()

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(8)]
    assert losses[0] == pytest.approx(np.log(len(PHOTOS)), rel=0.3)  # that of a guess
    assert losses[-1] < 0.5 * losses[0]


def test_an_export_gives_the_same_logits(images, tmp_path):
    save_classifier(tmp_path / "export", lite0())
    loaded = jaxvision.load_classifier(tmp_path / "export")
    assert loaded.classes == lite0().classes
    assert loaded.preprocess == lite0().preprocess
    np.testing.assert_array_equal(logits(loaded.model, images[:3]), logits(lite0().model, images[:3]))


def test_a_saved_file_has_the_tensors_of_the_package(tmp_path):
    def digests(path: Path) -> Counter:
        file = files.open_weights(path)
        names = [name for name in file.shapes if not name.endswith("num_batches_tracked")]
        return Counter((file.shapes[name], hashlib.sha256(file.tensor(name).tobytes()).digest()) for name in names)

    jaxvision.save_timm(lite0().model, tmp_path / "model.safetensors")
    assert digests(tmp_path / "model.safetensors") == digests(packages.find(NAME))


def test_evaluation_on_the_command_line(tmp_path, capsys):
    for photo in PHOTOS:
        folder = tmp_path / "test" / photo.name.partition("_")[0]
        folder.mkdir(parents=True)
        shutil.copy(photo, folder)
    assert not cli.main(["evaluate", "-m", NAME, "--data", str(tmp_path), "--split", "test", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["count"], result["top1"]) == (12, 1.0)
    assert result["loss"] == pytest.approx(np.mean([row["loss"] for row in GOLDEN.values()]), rel=1e-3)
