"""`jaxvision.recommend(..., tries=n)`: the ranking by probes on the user's images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jaxvision
from jaxvision.advice import trial
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError

VIT, B4 = "vit_base_patch16_224.augreg2_in21k_ft_in1k", "efficientnet_b4.ra2_in1k"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of 20 images: dark ones and bright ones, with noise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    rng = np.random.default_rng(0)
    for label, level in (("day", 200), ("night", 50)):
        (tmp_path / label).mkdir()
        for i in range(20):
            pixels = (level + rng.normal(0, 20, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    return tmp_path


def tiny(**blind: bool) -> Any:
    """Returns a stand-in for `load_classifier`: a small model, whose features are constant if it is `blind`."""

    def load(name: str, **options: Any) -> Classifier:
        architecture = name.partition(".")[0]
        if architecture not in blind:
            raise UserError(f"cannot download {name}")
        model = create_model("test_resnet", num_classes=0, image_size=32, **options)
        if blind[architecture]:
            nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
        return Classifier(model, (), Preprocess(image_size=32))

    return load


def test_the_trial_decides_the_order(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "load_classifier", tiny(vit_base_patch16_224=True, efficientnet_b4=False))
    lines: list[str] = []
    found = jaxvision.recommend(photos, device="t4", tries=2, log=lines.append)
    assert [row.name for row in found.rows[:2]] == [B4, VIT]
    first, second, third = (row.trial for row in found.rows[:3])
    assert first is not None
    assert second is not None
    assert (first.accuracy, first.images, third) == (100.0, 32, None)
    assert second.accuracy < 100
    assert "On 32 of your images a cross-validated probe of it is 100.0 % accurate" in found.reasons[0]
    assert f":{B4} " in found.commands[-1]
    assert [line for line in lines if "probing" in line] == [
        f"probing {VIT} on 32 images (1 of 2) ...",
        f"probing {B4} on 32 images (2 of 2) ...",
    ]


def test_the_number_of_images_is_that_of_the_accuracy(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many classes the cross-validation holds out only a fifth."""
    monkeypatch.setattr("jaxvision.features.probe.LARGE", 1)
    monkeypatch.setattr(trial, "load_classifier", tiny(vit_base_patch16_224=False))
    found = jaxvision.recommend(photos, device="t4", tries=1)
    assert found.rows[0].trial is not None
    assert found.rows[0].trial.images == 7  # of 32
    assert "On 7 of your images a cross-validated probe of it is" in found.reasons[0]


def test_weights_that_cannot_be_loaded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "load_classifier", tiny(efficientnet_b4=False))
    lines: list[str] = []
    found = jaxvision.recommend(photos, device="t4", tries=2, log=lines.append)
    assert [row.name for row in found.rows[:2]] == [B4, VIT]
    assert f"{VIT} is not tried: cannot download {VIT}" in lines
    assert "No other model was tried." in found.reasons[0]
    monkeypatch.setattr(trial, "load_classifier", tiny())
    with pytest.raises(UserError, match=rf"tries \(--try\): none of the models can be loaded. cannot download {VIT}"):
        jaxvision.recommend(photos, device="t4", tries=2)


def test_a_sample_of_the_training_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SAMPLE", 16)
    monkeypatch.setattr(trial, "LEAST_PER_CLASS", 2)
    monkeypatch.setattr(trial, "load_classifier", tiny(vit_base_patch16_224=False))
    found = jaxvision.recommend(photos, device="t4", tries=1)
    assert found.rows[0].trial is not None
    assert found.rows[0].trial.images == 16


@pytest.mark.parametrize(("data", "tries"), [(True, 0), (True, 6), (False, 2)])
def test_errors(photos: Path, data: bool, tries: int) -> None:
    with pytest.raises(UserError, match=rf"tries \(--try\): got {tries}, expected 1 to 5 models, and data to try"):
        jaxvision.recommend(photos if data else None, device="t4", tries=tries)


def test_as_many_classes_as_images_in_a_sample(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample is then larger, because one image of each class cannot be cross-validated."""
    monkeypatch.setattr(trial, "SAMPLE", 2)
    monkeypatch.setattr(trial, "LEAST_PER_CLASS", 8)
    monkeypatch.setattr(trial, "load_classifier", tiny(vit_base_patch16_224=False))
    found = jaxvision.recommend(photos, device="t4", tries=1)
    assert found.rows[0].trial is not None
    assert (found.rows[0].trial.accuracy, found.rows[0].trial.images) == (100.0, 16)


@pytest.mark.parametrize("sample", [1000, 1])
def test_one_training_image_of_each_class_cannot_be_tried(
    sample: int, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("day", "night"):
        for i in range(2, 20):  # one of two is held out for testing
            (photos / label / f"{i}.png").unlink()
    monkeypatch.setattr(trial, "SAMPLE", sample)
    with pytest.raises(UserError, match=r"tries \(--try\): got no class with two training images, expected one, for"):
        jaxvision.recommend(photos, device="t4", tries=1)
