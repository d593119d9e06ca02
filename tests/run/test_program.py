"""The model of a config: what is logged about the weights that it loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.foreign import write
from support.paths import TESTS
from support.plans import digits_config

from jaxvision import run
from jaxvision.augment.preprocess import IMAGENET_MEAN, Preprocess
from jaxvision.run.program import build_model

GOLDEN = json.loads((TESTS / "golden" / "foreign.json").read_text(encoding="utf-8"))["torchvision-vit"]


def messages(caplog: pytest.LogCaptureFixture, folder: Path, *, mean: tuple[float, ...] = (0.5, 0.5, 0.5)) -> list[str]:
    """Returns what is logged when a model is built with weights of torchvision."""
    path = write(folder / "model.safetensors", GOLDEN["shapes"])
    model = {"name": GOLDEN["architecture"], "checkpoint_path": str(path), **GOLDEN["options"]}
    config = run.complete(digits_config(model=model))
    with caplog.at_level("INFO", "jaxvision"):
        build_model(config, 5, 3, Preprocess(image_size=32, mean=mean), weights=False)
        assert not caplog.messages
        build_model(config, 5, 3, Preprocess(image_size=32, mean=mean), weights=True)
    return caplog.messages


def test_training_logs_the_library_of_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = messages(caplog, tmp_path, mean=IMAGENET_MEAN)
    assert found == [
        f"{tmp_path / 'model.safetensors'} has the tensor names of torchvision, which are converted to timm's"
    ]


def test_training_warns_of_another_normalization(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (found,) = (text for text in messages(caplog, tmp_path) if "normalizes images" in text)
    assert "torchvision normalizes images by the mean (0.485, 0.456, 0.406), but the transform by (0.5, 0.5" in found
    assert "in a config set preprocess.mean and preprocess.std" in found
