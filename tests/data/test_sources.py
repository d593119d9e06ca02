"""jaxvision.data: the sources."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from support.images import scene

from jaxvision.augment.decoding import decode
from jaxvision.data.folder import open_test_folder
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


# --- folders


def make_folder(root, classes, count=5, ending=".png"):
    for number, class_ in enumerate(classes):
        folder = root / class_
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(sample_image(10 * number + i)).save(folder / f"{i}{ending}")
    return root


def test_a_folder_with_parts(tmp_path):
    make_folder(tmp_path / "train", ["dog", "cat", "ant"])
    make_folder(tmp_path / "val", ["cat", "dog"], count=2)
    make_folder(tmp_path / "test", ["ant", "cat", "dog"], count=1)
    train, validation, test = open_source("folder", data_dir=str(tmp_path))
    assert train.classes == validation.classes == test.classes == ["ant", "cat", "dog"]
    assert [len(train), len(validation), len(test)] == [15, 4, 3]
    assert validation.labels.tolist() == [1, 1, 2, 2]  # the numbers of train, although 'ant' is missing here
    example = train[7]
    assert example["label"] == 1
    assert train.where(7) == str(tmp_path / "train" / "cat" / "2.png")
    np.testing.assert_array_equal(np.asarray(decode(example["image"])), sample_image(12))


def test_parts_may_have_other_spellings(tmp_path):
    make_folder(tmp_path / "Train", ["cat", "dog"])
    make_folder(tmp_path / "Validation", ["cat", "dog"], count=2)
    train, validation, test = open_source("folder", data_dir=str(tmp_path))
    assert (len(train), len(validation), test) == (10, 4, None)
    assert train.classes == ["cat", "dog"]


def test_a_folder_is_split_by_class_and_seed(tmp_path):
    make_folder(tmp_path, ["b", "a"], count=10)
    train, _, test = open_source("folder", data_dir=str(tmp_path), test_fraction=0.3)
    assert (len(train), len(test)) == (14, 6)
    assert np.bincount(test.labels).tolist() == [3, 3]
    assert not set(train.files) & set(test.files)
    again = open_source("folder", data_dir=str(tmp_path), test_fraction=0.3).test
    assert again.files == test.files
    other = open_source("folder", data_dir=str(tmp_path), test_fraction=0.3, split_seed=1).test
    assert other.files != test.files


def test_a_folder_with_only_train_is_split(tmp_path):
    make_folder(tmp_path / "train", ["a", "b"], count=10)
    train, _, test = open_source("folder", data_dir=str(tmp_path))
    assert (len(train), len(test)) == (16, 4)


def test_other_files_are_counted_and_ignored(tmp_path):
    make_folder(tmp_path, ["a", "b"])
    (tmp_path / "a" / "deeper").mkdir()
    Image.fromarray(sample_image(0)).save(tmp_path / "a" / "deeper" / "x.JPG")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "b" / "Thumbs.db").write_text("not an image")
    (tmp_path / "b" / ".hidden.png").write_text("not an image")
    (tmp_path / "b" / ".cache").mkdir()
    (tmp_path / "b" / ".cache" / "y.png").write_text("not an image")
    (tmp_path / "readme.md").write_text("next to the classes")
    train, _, test = open_source("folder", data_dir=str(tmp_path))
    assert len(train) + len(test) == 11
    assert any(file.endswith("x.JPG") for file in train.files + test.files)
    assert train.ignored == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "got no folders, expected one for each class"),
        (lambda root: (make_folder(root, ["a", "b"]), (root / "c").mkdir()), "c: got no images, expected at least one"),
        (
            lambda root: (make_folder(root, ["a", "b"], ending=".png"), (root / "c").mkdir(), touch(root / "c/x.heic")),
            r"c: got no images \(only \.heic\), expected at least one",
        ),
        (lambda root: make_folder(root / "val", ["a"]), "got only val, expected also a folder 'train'"),
        (
            lambda root: (make_folder(root / "train", ["a", "b"]), make_folder(root / "val", ["a", "x"])),
            "val: got the class 'x', expected only classes of .*train",
        ),
        (lambda root: make_folder(root, ["a", "b"], count=1), "got one image per class, expected at least two"),
        (
            lambda root: make_folder(root / "images", ["a", "b"]),
            r"got the classes \['images'\], expected two or more",
        ),
    ],
)
def test_invalid_folders(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source("folder", data_dir=str(tmp_path))


def touch(path):
    path.write_bytes(b"")


def test_no_such_folder():
    with pytest.raises(UserError, match=r"source\.data_dir: got 'imgaes', expected a folder that exists"):
        open_source("folder", data_dir="imgaes")


def test_a_test_folder_uses_the_models_class_numbers(tmp_path):
    make_folder(tmp_path, ["cat", "emu"], count=2)
    source = open_test_folder(tmp_path, ["ant", "cat", "dog", "emu"])
    assert source.labels.tolist() == [1, 1, 3, 3]
    with pytest.raises(UserError, match="got the class 'emu', expected the classes of the model: cat"):
        open_test_folder(tmp_path, ["cat"])


def test_a_test_folder_may_have_parts(tmp_path):
    make_folder(tmp_path / "train", ["cat", "dog"])
    make_folder(tmp_path / "val", ["cat", "dog"], count=2)
    for split in ("validation", "val", "VALID"):
        assert len(open_test_folder(tmp_path, ["cat", "dog"], split)) == 4
    with pytest.raises(UserError, match=r"got the split 'test', expected one of train \(train/\), validation \(val/\)"):
        open_test_folder(tmp_path, ["cat", "dog"])
    make_folder(tmp_path / "classes", ["test", "train"], count=1)  # classes with the names of splits
    assert len(open_test_folder(tmp_path / "classes", ["other", "test", "train"])) == 2
