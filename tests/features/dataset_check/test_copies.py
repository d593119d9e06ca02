"""Copies of images are found, and different images are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from support.images import encode, random_image

from jaxvision.features.dataset_check import copies
from jaxvision.features.dataset_check.copies import compare, find_copies, view_of

ORIGINAL = random_image(0)
COPIES = {
    "resized or recompressed": [
        cv2.resize(ORIGINAL, (60, 45), interpolation=cv2.INTER_AREA),
        cv2.resize(ORIGINAL, (100, 100)),
        encode(ORIGINAL, "JPEG", quality=20),
        ORIGINAL.mean(axis=-1, keepdims=True).astype(np.uint8),
        (ORIGINAL * 0.7 + 60).astype(np.uint8),
    ],
    "mirrored": [ORIGINAL[:, ::-1].copy()],
    "cropped": [ORIGINAL[5:86, 2:110].copy(), ORIGINAL[10:82, 10:106].copy(), ORIGINAL[:, 12:].copy()],
    "mirrored and cropped": [ORIGINAL[5:86, 2:110][:, ::-1].copy()],
}


@pytest.mark.parametrize(("how", "copy"), [(how, copy) for how, made in COPIES.items() for copy in made])
def test_copies_are_found_either_way(how: str, copy: bytes | np.ndarray) -> None:
    a, b = view_of(ORIGINAL), view_of(copy)
    for correlation, found in (compare(a, b), compare(b, a)):
        assert found == how
        assert 0.85 <= correlation <= 1


def test_other_images_are_no_copies() -> None:
    views = [view_of(random_image(seed)) for seed in range(12)]
    assert {compare(views[i], views[j])[0] for i in range(12) for j in range(i)} == {0.0}


def test_identical_bytes_and_blank_images() -> None:
    assert compare(view_of(encode(ORIGINAL)), view_of(encode(ORIGINAL))) == (1.0, "identical files")
    gray, black = (np.full((8, 8, 3), level, np.uint8) for level in (128, 0))
    assert compare(view_of(gray), view_of(gray[:4])) == (1.0, "both blank")
    assert compare(view_of(gray), view_of(black))[0] == 0
    assert compare(view_of(gray), view_of(ORIGINAL))[0] == 0


def test_pixels_are_compared_among_similar_features_only() -> None:
    views = [view_of(image) for image in (ORIGINAL, ORIGINAL[:, ::-1], random_image(1))]
    read = []

    def view(row: int) -> copies.View:
        read.append(row)
        return views[row]

    neighbor = np.array([[1], [0], [0]])
    found = find_copies(np.array([[0.8], [0.8], [0.5]]), neighbor, view)
    assert [(copy.first, copy.second, copy.how) for copy in found] == [(0, 1, "mirrored")]
    assert set(read) == {0, 1}
    assert find_copies(np.array([[0.5], [0.5], [0.5]]), neighbor, view) == []
