"""jaxvision.evaluate: a second evaluation uses the program of the first."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.create import create_model
from jaxvision.data import ArraySource
from jaxvision.data.dataset import StreamedDataset
from jaxvision.eval.evaluate import evaluate
from jaxvision.eval.page import notes_on
from jaxvision.models.resnet import ResNet


def test_a_second_evaluation_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, traced = ResNet.forward_features, list[tuple[int, ...]]()

    def counted(model: Any, images: jax.Array) -> jax.Array:
        traced.append(images.shape)
        return forward(model, images)

    monkeypatch.setattr(ResNet, "forward_features", counted)
    model = create_model("test_resnet", num_classes=10, in_channels=1)
    classifier = Classifier(model, tuple("0123456789"), Preprocess(image_size=16, mean=(0.3,), std=(0.25,)))
    options: dict[str, Any] = {"batch_size": 180, "quiet": True}
    first = evaluate(classifier, "digits", **options)
    assert traced == [(184, 16, 16, 1)]  # a multiple of the eight devices
    assert evaluate(classifier, "digits", **options) == first
    assert len(traced) == 1


def test_the_note_on_damaged_images_counts_them() -> None:
    class Damaged(ArraySource):
        def __getitem__(self, index: int) -> Any:
            return {"image": b"damaged", "label": 0}

    arrays = np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, int)
    dataset = StreamedDataset(Damaged(*arrays, classes=["a", "b"], name="mine"), max_corrupt=10, log=lambda line: None)
    assert notes_on({"test": dataset}) == []
    dataset.record_corrupt([1])
    assert notes_on({"test": dataset}) == ["skipped 1 damaged image of the test data: mine[1]"]
    dataset.record_corrupt([0])
    assert notes_on({"test": dataset}) == ["skipped 2 damaged images of the test data: mine[1], mine[0]"]
