"""Keys that are "auto": what the model and the number of training images choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flax import nnx
from support.images import class_folders
from support.quick import quick, refused, start

from jaxvision import run
from jaxvision.models import registry
from jaxvision.run.config import load
from jaxvision.run.recipe import resolve


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(8, 15.0), (125, 15.0), (1000, 10.0), (3375, 6.7), (8000, 5.0), (10_000_000, 5.0)],  # 10 / 1.5, 10 / 2
)
def test_the_epochs(images: int, epochs: float) -> None:
    _, chosen = resolve(run.complete(load("configs/folder.py")), images)
    assert (chosen["train.epochs"], chosen["schedule.warmup_epochs"]) == (epochs, pytest.approx(epochs / 10, abs=0.01))


@pytest.mark.parametrize(
    ("model", "rate", "decay"),
    [("resnet50", 5e-4, None), ("efficientnet_b0", 5e-4, None), ("vit_base_patch16_224", 1e-4, 0.75)],
)
def test_the_optimizer(model: str, rate: float, decay: float | None) -> None:
    settings, chosen = resolve(run.complete(load(f"configs/folder.py:{model}")), 1000)
    assert (chosen["optimizer.learning_rate"], chosen["optimizer.layer_decay"]) == (rate, decay)
    assert (settings.optimizer.learning_rate, settings.optimizer.layer_decay) == (rate, decay)


def test_numbers_of_the_user_remain_and_the_warm_up_is_a_tenth() -> None:
    config = run.complete(load("configs/folder.py"))
    _, chosen = resolve(config, 1000)
    assert (chosen["train.epochs"], chosen["schedule.warmup_epochs"]) == (10.0, 1.0)
    flags = [("train.epochs", "30"), ("optimizer.learning_rate", "1e-2"), ("optimizer.layer_decay", "0.9")]
    settings, chosen = resolve(run.complete(load("configs/folder.py"), flags), 1000)
    assert chosen == {"schedule.warmup_epochs": 3.0}
    assert (settings.train.epochs, settings.optimizer.learning_rate, settings.optimizer.layer_decay) == (
        30.0,
        0.01,
        0.9,
    )
    config = run.complete(load("configs/folder.py"), [("train.steps", "500")])  # 16 epochs of batches of 32
    _, chosen = resolve(config, 1000)
    assert (chosen.keys() & {"train.epochs"}, chosen["schedule.warmup_epochs"]) == (set(), 1.6)


def test_a_model_of_a_function_gets_the_rule_of_convolutional_networks() -> None:
    def recipe_test_model(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, rngs: nnx.Rngs) -> Any:
        raise NotImplementedError

    registry.register_model(recipe_test_model)
    try:
        config = run.complete(load("configs/folder.py:recipe_test_model"))
        assert resolve(config, 1000)[1]["optimizer.learning_rate"] == 5e-4
    finally:
        registry.unregister_model("recipe_test_model")


def test_a_config_file_and_flags_may_say_auto() -> None:
    config = run.complete(quick(), [("train.epochs", "auto"), ("source.validation_fraction", "auto")])
    assert (config.train.epochs, config.source.validation_fraction) == ("auto", "auto")
    own = load("configs/folder.py")
    own.train.epochs, own.optimizer.learning_rate = 3, 0.01
    assert run.complete(own).train.epochs == 3.0


@pytest.mark.slow
def test_the_console_names_the_choice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """18 images: three for testing, and of the other 15 three for the validation."""
    photos = class_folders(tmp_path / "photos", ["cat", "dog", "owl"], each=6)
    arguments = ["--config=configs/folder.py:test_resnet", f"--config.source.data_dir={photos}"]
    arguments += ["--config.model.pretrained=False", "--config.model.image_size=32", "--config.train.steps=2"]
    status, out, err = start(capsys, *arguments, f"--workdir={tmp_path / 'run'}", "--config.mesh.data=1")
    assert status == 0, err
    text = " ".join(out.split())
    assert "3 of 15 training images are held out for validation" in text
    chosen = "schedule.warmup_epochs=0.53, optimizer.learning_rate=0.0005, optimizer.layer_decay=None"
    assert f'"auto" for this model and 12 training images: {chosen}' in text
    assert "also run `jaxvision probe`, whose cross-validation tests all of them" in text


def test_errors(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", ["cat", "dog"], each=4)
    arguments = ["--config=configs/folder.py:test_resnet", f"--config.source.data_dir={photos}"]
    arguments += ["--config.model.pretrained=False", f"--workdir={tmp_path / 'run'}"]
    error = refused(capsys, *arguments, "--config.optimizer.name=sgd")
    assert (
        "config.optimizer.learning_rate: got 'auto' for 'sgd', expected a number, because only adamw and muon" in error
    )
    error = refused(capsys, *arguments, "--config.train.epochs=automatic")
    assert "config.train.epochs: got 'automatic', expected a number or 'auto'" in error
    assert not (tmp_path / "run").exists()
