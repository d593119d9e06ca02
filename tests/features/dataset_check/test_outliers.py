"""Outliers: the threshold by hand, and nothing found among equals."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from jaxvision.features.dataset_check.outliers import find_outliers


def test_the_threshold_by_hand() -> None:
    # Distances 0.1 to 0.5 and 0.9: the median is 0.35, and the median excess of 0.4, 0.5 and 0.9 above it is 0.15.
    distance = np.array([0.3, 0.1, 0.9, 0.2, 0.5, 0.4])
    similarity = np.stack([1 - distance + 0.05, 1 - distance - 0.05], axis=1)
    rows, found, threshold = find_outliers(similarity)
    np.testing.assert_allclose(found, distance)
    assert threshold == pytest.approx(0.35 + NormalDist().inv_cdf(5 / 6) * 1.4826 * 0.15)
    assert rows.tolist() == [2]


def test_about_one_of_many_normal_distances_is_beyond_it() -> None:
    normal = np.random.default_rng(0).normal(0.5, 0.05, (20, 1000))
    found = [len(find_outliers(1 - distance[:, None])[0]) for distance in normal]
    assert 0.5 < np.mean(found) < 2


def test_equal_distances_have_no_outlier() -> None:
    assert len(find_outliers(np.full((30, 10), 0.8))[0]) == 0
