"""Folders of images are matched to ImageNet's classes by name or by WordNet identifier."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.create import create_model
from jaxvision.eval.evaluate import evaluate
from jaxvision.weights import imagenet


@pytest.mark.parametrize("folders", [("n01440764", "n02123045"), ("tench", "tabby")])
def test_imagenet_folders_by_name_or_identifier(tmp_path: Path, folders: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    for folder in folders:
        (tmp_path / "images" / folder).mkdir(parents=True)
        image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
        image.save(tmp_path / "images" / folder / "1.png")
    classifier = Classifier(create_model("test_resnet"), imagenet.class_names(), Preprocess(image_size=32))
    result = evaluate(classifier, str(tmp_path / "images"), report_dir=tmp_path / "report", quiet=True)
    assert result["count"] == 2
    with (tmp_path / "report" / "mistakes.csv").open(newline="") as file:
        true = {row["true"] for row in csv.DictReader(file)}
    assert true == {"tench", "tabby"}  # the random model recognizes neither
