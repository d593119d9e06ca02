"""New heads: every unused tensor of the file is an error or announced, whatever the arguments."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from support.weight_files import write

from jaxvision.classifier import load_classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError


def sequential(tensors: dict) -> None:
    """Renames the head as ``model.fc = nn.Sequential(nn.Dropout(), nn.Linear(192, 10))`` would."""
    for name in ("weight", "bias"):
        tensors[f"fc.1.{name}"] = tensors.pop(f"fc.{name}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 10}, {"num_classes": 7}, {"num_classes": 10, "in_channels": 1, "image_size": 64}]
)
def test_a_head_in_a_sequential_is_an_error(options, file):
    write(file, num_classes=10, change=sequential)
    for load in (create_model, load_classifier):
        with pytest.raises(UserError) as error:
            load("test_resnet", checkpoint_path=file, **options)
        message = str(error.value)
        assert "its head has other layers (fc.1.bias [10], fc.1.weight [10, " in message
        assert "), expected fc.weight. " in message
        assert "Rename the tensors" in message
        assert "num_classes=0" in message


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"features_only": True}])
def test_without_a_head_the_rest_is_loaded_and_the_head_announced(options, file, caplog):
    write(file, num_classes=10, change=sequential)
    create_model("test_resnet", checkpoint_path=file, **options)
    assert caplog.messages == [f"{file}: the model has no head; not used: fc.1.bias, fc.1.weight"]


def test_a_renamed_head_is_loaded(file):
    write(file, num_classes=10)
    assert create_model("test_resnet", checkpoint_path=file, num_classes=10).num_classes == 10


@pytest.mark.parametrize(("stored", "text"), [(10, "a head of 10 classes, which is not used"), (0, "no head")])
def test_a_new_head_is_announced_in_one_line(stored, text, file, caplog):
    write(file, "test_vit", num_classes=stored)
    create_model("test_vit", checkpoint_path=file, num_classes=7)
    assert caplog.messages == [f"{file} has {text}: the head of 7 classes is newly initialized"]


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"in_channels": 1}, {"features_only": True}])
def test_an_unknown_tensor_is_an_error_whatever_the_arguments(options, file):
    write(file, change=lambda x: x.update({"aux.weight": np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match=r"1 unexpected \(aux.weight\)"):
        create_model("test_resnet", checkpoint_path=file, **options)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"in_channels": 1}, {"features_only": True}])
def test_a_missing_tensor_is_an_error_whatever_the_arguments(options, file):
    write(file, change=lambda x: x.pop("bn1.bias"))
    with pytest.raises(UserError, match=r"1 missing \(bn1.bias\)"):
        create_model("test_resnet", checkpoint_path=file, **options)


def test_a_head_that_was_not_asked_for_needs_no_warning(file, caplog):
    write(file)
    with caplog.at_level(logging.INFO):
        create_model("test_resnet", checkpoint_path=file, num_classes=0)
    assert [(r.levelname, r.getMessage()) for r in caplog.records if r.name.startswith("jaxvision")] == [
        ("INFO", f"{file}: the model has no head; not used: fc.bias, fc.weight")
    ]
