"""The report of an evaluation shows images of any number of channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.create import create_model
from jaxvision.data import ArraySource, open_dataset
from jaxvision.eval.metrics import summarize_probabilities
from jaxvision.eval.page import describe
from jaxvision.report import write_report


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("side", [24, 200])
def test_images_of_any_number_of_channels(channels: int, side: int, tmp_path: Path) -> None:
    model = create_model("test_resnet", num_classes=2, in_channels=channels, image_size=32)
    classifier = Classifier(model, ("a", "b"), Preprocess(image_size=32).for_channels(channels))
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, channels), np.uint8)
    images = open_dataset(ArraySource(pixels, np.arange(2), classes=["a", "b"], name="mine"))
    probabilities = np.array([[0.2, 0.8], [0.3, 0.7]])  # the first one is wrong
    result = summarize_probabilities(probabilities, np.arange(2), index=np.arange(2), loss=np.ones(2))
    page = describe(classifier, result, images, explanations=0, title="mine")
    (mistake,) = page.mistakes
    assert mistake.image.shape[-1] == 3
    if side == 24:  # larger ones are reduced
        shown = [0, 1, 2] if channels >= 3 else [0, 0, 0]
        np.testing.assert_array_equal(mistake.image, pixels[0][..., shown])
    assert "mine[0]" in write_report(tmp_path, page).read_text()
