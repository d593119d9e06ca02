"""jaxvision.data: the sources."""

from __future__ import annotations

import numpy as np
import pytest
from support.images import scene

from jaxvision.data.source import SOURCES, open_source, stratified_split
from jaxvision.errors import UserError


def sample_image(seed, size=12):
    return scene(size, size + 4, seed=seed)


# --- by name


def test_an_unknown_source_or_option_names_the_nearest():
    with pytest.raises(UserError, match=r"source\.name: got 'folders', expected a source\. Did you mean 'folder'"):
        open_source("folders")
    with pytest.raises(UserError, match=r"got 'data_dri', expected an option of .*'folder'\. Did you mean 'data_dir'"):
        open_source("folder", data_dri="x")
    assert set(SOURCES) == {"digits", "folder", "tfds", "huggingface"}


def test_a_missing_part():
    with pytest.raises(UserError, match=r"split: got 'validation', expected a split .* Valid names: 'test', 'train'\."):
        open_source("digits").split("validation")


def test_stratified_split_holds_out_the_share_of_each_class():
    labels = np.repeat(np.arange(4), [50, 20, 3, 1])
    kept, held = stratified_split(labels, 0.2, seed=0)
    assert sorted([*kept, *held]) == list(range(74))
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 4, 1, 0]
    again = stratified_split(labels, 0.2, seed=0)
    np.testing.assert_array_equal(held, again[1])
    assert (held != stratified_split(labels, 0.2, seed=1)[1]).any()
    for fraction in (0.0, 1.0):
        with pytest.raises(UserError, match="between 0 and 1"):
            stratified_split(labels, fraction, seed=0)


# --- digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    train, validation, test = open_source("digits")
    assert validation is None
    assert train.classes == [str(i) for i in range(10)]
    assert len(train) + len(test) == 1797
    assert abs(len(test) - 359) <= 5
    expected = {image.tobytes(): label for image, label in zip(load_digits().images, load_digits().target, strict=True)}
    seen = set()
    for source in (train, test):
        for i in range(len(source)):
            example = source[i]
            assert example["image"].shape == (8, 8, 1)
            levels = np.round(example["image"][..., 0] * (16 / 255.0))
            assert expected[levels.tobytes()] == example["label"] == source.labels[i]
            seen.add((levels.tobytes(), source is test))
    assert len(seen) >= 1790  # no image is in both splits (a few of the 1797 may be equal)
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert np.abs(share - 0.2).max() < 0.01


def test_the_digits_split_is_fixed_by_its_seed():
    a, b = open_source("digits").test, open_source("digits", split_seed=0).test
    np.testing.assert_array_equal(a.images, b.images)
    assert (a.images != open_source("digits", split_seed=1).test.images).any()
