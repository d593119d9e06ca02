"""The nearest neighbors, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from jaxvision.features import knn_accuracy

DIGITS, LABEL = load_digits(return_X_y=True)
NOISY = DIGITS + 8 * np.random.default_rng(0).normal(size=DIGITS.shape)


def reference(k: int) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))


@pytest.mark.parametrize("k", [1, 20])
def test_as_scikit_learn(k: int) -> None:
    fitted = reference(k).fit(NOISY[:1000], LABEL[:1000])
    wanted = fitted.score(NOISY[1000:], LABEL[1000:])
    assert 0.3 < wanted < 0.99
    assert knn_accuracy(NOISY[:1000], LABEL[:1000], NOISY[1000:], LABEL[1000:], k=k) == pytest.approx(wanted, abs=2e-3)


def test_each_image_without_itself() -> None:
    x, y = NOISY[:150], LABEL[:150]
    others = [np.arange(150) != i for i in range(150)]
    correct = [reference(20).fit(x[rest], y[rest]).predict(x[~rest])[0] == y[i] for i, rest in enumerate(others)]
    assert knn_accuracy(x, y) == pytest.approx(np.mean(correct), abs=1e-2)
    assert knn_accuracy(x, y, x, y, k=1) == 1.0  # with itself


def test_few_images_and_many() -> None:
    assert knn_accuracy(np.eye(2), np.array([0, 1])) == 0.0
    assert knn_accuracy(DIGITS, LABEL, most=300) == pytest.approx(knn_accuracy(DIGITS, LABEL), abs=0.02)
