"""Predictions of image files in batches: the numbers, the order, damaged files and many devices."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxvision
from jaxvision import Classifier, Ensemble, UserError
from jaxvision.augment.preprocess import Preprocess
from jaxvision.eval.predict import predict_files
from jaxvision.parallel.mesh import make_mesh


def ensemble_of(*sizes: int) -> Ensemble:
    """Returns small models of two classes for images of these sizes."""
    members = []
    for seed, size in enumerate(sizes):
        model = jaxvision.create_model("test_vit", num_classes=2, image_size=size, patch_size=8, seed=seed)
        members.append(Classifier(model, ("cat", "dog"), Preprocess(image_size=size)))
    return Ensemble(members)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Returns eleven images of different sizes, of which the fourth is damaged and the last does not exist."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    files = []
    for i in range(10):
        files.append(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 255, (30 + i, 50, 3), np.uint8)).save(files[-1])
    files[3].write_bytes(files[3].read_bytes()[:80])
    return [*files, folder / "missing.png"]


@pytest.mark.parametrize("batch_size", [None, 1, 3, 4])
@pytest.mark.parametrize("devices", [1, 8])
def test_the_results_are_those_of_one_image_at_a_time(photos, batch_size, devices):
    ensemble, mesh = ensemble_of(32, 48), make_mesh(devices=jax.devices()[:devices])
    results = list(predict_files(ensemble, photos, batch_size=batch_size, mesh=mesh))
    assert [file for file, _ in results] == photos
    for i, (file, got) in enumerate(results):
        if i in (3, 10):
            assert isinstance(got, UserError)
            assert file.name in str(got)
        else:
            wanted = np.asarray(ensemble.predict(ensemble.images(file)))[0]
            np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_without_a_readable_image_nothing_is_computed(photos, monkeypatch):
    monkeypatch.setattr(Ensemble, "predict", None)
    ((_, error),) = predict_files(ensemble_of(32), photos[-1:])
    assert isinstance(error, UserError)


def test_results_come_while_later_images_are_not_yet_read(photos, monkeypatch):
    """With batches of one image, the first result needs the images of two steps and the two that are decoded ahead."""
    read = []
    pixels = Ensemble.pixels
    monkeypatch.setattr(Ensemble, "pixels", lambda self, file: read.append(file) or pixels(self, file))
    results = predict_files(ensemble_of(32), photos[:3] * 20, batch_size=1, mesh=make_mesh(devices=jax.devices()[:1]))
    next(results)
    assert 2 <= len(read) <= 5
    results.close()


def test_a_batch_has_at_least_one_image(photos):
    with pytest.raises(UserError, match="batch_size: got 0, expected 1 or more"):
        list(predict_files(ensemble_of(32), photos, batch_size=0))


def test_the_file_is_read_once_for_all_members(photos, monkeypatch):
    opened = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self) or read(self))
    ensemble_of(32, 32, 48).pixels(photos[0])
    assert opened == photos[:1]
