"""jaxvision.data.folder and jaxvision.data.layout: folders of images, as classes or as splits."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import scene

from jaxvision.augment.decoding import decode
from jaxvision.data.dataset import open_dataset
from jaxvision.data.folder import open_all_images, open_test_folder
from jaxvision.data.layout import check_outputs_outside
from jaxvision.data.source import open_source
from jaxvision.errors import UserError


def sample_image(seed, size=12):
    return scene(size, size + 4, seed=seed)


def make_folder(root, classes, count=5, ending=".png"):
    for number, class_ in enumerate(classes):
        folder = root / class_
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(sample_image(10 * number + i)).save(folder / f"{i}{ending}")
    return root


def test_a_link_to_itself_does_not_hide_a_split(tmp_path):
    make_folder(tmp_path / "train", ["cat", "dog"])
    make_folder(tmp_path / "val", ["cat", "dog"], count=2)
    for folder in (tmp_path, tmp_path / "val"):
        (folder / "loop").symlink_to("loop")
    train, validation, test = open_source("folder", data_dir=str(tmp_path))
    assert (len(train), len(validation), test) == (10, 4, None)


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
    assert list(again.files) == list(test.files)
    other = open_source("folder", data_dir=str(tmp_path), test_fraction=0.3, split_seed=1).test
    assert list(other.files) != list(test.files)


def test_a_folder_with_only_train_is_split(tmp_path):
    make_folder(tmp_path / "train", ["a", "b"], count=10)
    train, _, test = open_source("folder", data_dir=str(tmp_path))
    assert (len(train), len(test)) == (16, 4)


def test_none_is_held_out(tmp_path):
    make_folder(tmp_path / "photos", ["a", "b"])
    train, validation, test = open_source("folder", data_dir=str(tmp_path / "photos"), test_fraction=0)
    assert (len(train), validation, test) == (10, None, None)
    assert {split: len(images) for split, images in open_all_images(tmp_path / "photos").items()} == {"all": 10}
    flat = open_all_images(tmp_path / "photos" / "a")["all"]
    assert (len(flat), flat.classes) == (5, [""])
    make_folder(tmp_path / "held" / "val", ["a", "c"])
    make_folder(tmp_path / "held" / "test", ["b", "c"], count=1)
    held = open_all_images(tmp_path / "held")  # without training data, all splits together have the classes
    assert held["validation"].classes == held["test"].classes == ["a", "b", "c"]
    assert held["test"].labels.tolist() == [1, 2]
    with pytest.raises(UserError, match="expected a folder that exists"):
        open_all_images(tmp_path / "none")


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
    assert any(file.endswith("x.JPG") for file in [*train.files, *test.files])
    lines = []
    open_dataset(train, log=lines.append)
    assert lines == [
        f"{tmp_path}: ignored hidden: 2 (such as b/.cache), .db: 1 (b/Thumbs.db), .md: 1 (readme.md), "
        ".txt: 1 (a/notes.txt)"
    ]
    assert open_dataset(test, log=lines.append)
    assert len(lines) == 1  # said once


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "got no folders, expected one for each class"),
        (lambda root: (make_folder(root, ["a", "b"]), (root / "c").mkdir()), "c: got no images, expected at least one"),
        (
            lambda root: (make_folder(root, ["a", "b"], ending=".png"), (root / "c").mkdir(), touch(root / "c/x.heic")),
            r"c: got no images \(only HEIC: 1 \(x\.heic; not supported, convert them with .*: mogrify .*\)\), expected",
        ),
        (
            lambda root: (make_folder(root, ["a", "b"]), [(root / c).mkdir() for c in "cde"], touch(root / "c/x.heic")),
            r"/invalid: got 3 class folders without images: c \(only HEIC: 1 \(x.*\)\), d, e, expected .* in each",
        ),
        (
            lambda root: (make_folder(root, ["a", "b"]), [(root / f"e{i}").mkdir() for i in range(9)]),
            "got 9 class folders without images: e0, e1, e2, e3, e4 and 4 more, expected",
        ),
        (
            lambda root: make_folder(root / "val", ["a"]),
            "got only val, expected also a folder 'train'. Add .*source.layout=classes",
        ),
        (
            lambda root: (make_folder(root, ["a", "b"]), (root / "c").symlink_to("b")),
            r"c: got no images \(only links to images of other classes\), expected at least one",
        ),
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
    root = tmp_path / "invalid"
    root.mkdir()
    make(root)
    with pytest.raises(UserError, match=message):
        open_source("folder", data_dir=str(root))


def touch(path):
    path.write_bytes(b"")


def test_no_such_folder():
    with pytest.raises(UserError, match=r"source\.data_dir: got 'imgaes', expected a folder that exists"):
        open_source("folder", data_dir="imgaes")


def test_a_test_folder_uses_the_models_class_numbers(tmp_path):
    make_folder(tmp_path, ["cat", "emu"], count=2)
    source = open_test_folder(tmp_path, ["ant", "cat", "dog", "emu"])
    assert source.labels.tolist() == [1, 1, 3, 3]
    shutil.rmtree(tmp_path / "cat")
    assert "read as 1 class, one for each folder" in open_test_folder(tmp_path, ["ant", "emu"]).notes[0]
    make_folder(tmp_path, ["cat"], count=2)
    with pytest.raises(UserError, match="got the class 'emu', expected the classes of the model: cat"):
        open_test_folder(tmp_path, ["cat"])


def test_a_test_folder_may_have_parts(tmp_path):
    make_folder(tmp_path / "train", ["cat", "dog"])
    make_folder(tmp_path / "val", ["cat", "dog"], count=2)
    for split in ("validation", "val", "VALID"):
        assert len(open_test_folder(tmp_path, ["cat", "dog"], split)) == 4
    expected = r"expected one of train \(train/\), validation \(val/\)\. Choose .* --split validation\.$"
    with pytest.raises(UserError, match=rf"got no folder for the split 'test' \(the default\), {expected}"):
        open_test_folder(tmp_path, ["cat", "dog"])
    with pytest.raises(UserError, match=rf"got no folder for the split 'tset', {expected}"):
        open_test_folder(tmp_path, ["cat", "dog"], "tset")
    make_folder(tmp_path / "classes", ["test", "train"], count=1)  # classes with the names of splits
    assert len(open_test_folder(tmp_path / "classes", ["other", "test", "train"])) == 2


# --- layout

IMAGE, NESTED = "x.png y.png", "cat/x.png cat/y.png dog/x.png dog/y.png"


def make(root, **folders):
    """Writes one-pixel images: folder -> their paths in it."""
    for folder, files in folders.items():
        (root / folder).mkdir(parents=True)
        for file in files.split():
            (root / folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (1, 1)).save(root / folder / file)
    return str(root)


def classes_and_splits(splits):
    return splits.train.classes, [split for split, source in splits._asdict().items() if source is not None]


HELD_OUT = ["train", "test"]


@pytest.mark.parametrize(
    ("folders", "classes", "splits"),
    [
        # The siblings of a class called train were dropped.
        ({"bus": IMAGE, "car": IMAGE, "train": IMAGE}, ["bus", "car", "train"], HELD_OUT),
        ({"bus": IMAGE, "car": IMAGE, "train": "x.png steam/y.png"}, ["bus", "car", "train"], HELD_OUT),
        ({"bus": "double/x.png y.png", "train": IMAGE}, ["bus", "train"], HELD_OUT),
        ({"dev": IMAGE, "test": IMAGE, "Valid": IMAGE}, ["Valid", "dev", "test"], HELD_OUT),
        ({"train": IMAGE, "test": IMAGE}, ["test", "train"], HELD_OUT),
        ({"train": NESTED}, ["cat", "dog"], HELD_OUT),
        ({"Training": NESTED, "DEV": NESTED}, ["cat", "dog"], ["train", "validation"]),
        ({"train": NESTED, "dev": NESTED, "Testing": NESTED}, ["cat", "dog"], ["train", "validation", "test"]),
        ({"train": NESTED, "val": NESTED, "extra": NESTED, "raw": IMAGE}, ["cat", "dog"], ["train", "validation"]),
        ({"train": NESTED, "scripts": ""}, ["cat", "dog"], HELD_OUT),
        ({"train": NESTED, "test": IMAGE}, ["cat", "dog"], HELD_OUT),
        ({"train": NESTED, "test": ""}, ["cat", "dog"], HELD_OUT),
    ],
)
def test_the_whole_folder_decides(tmp_path, folders, classes, splits):
    assert classes_and_splits(open_source("folder", data_dir=make(tmp_path, **folders))) == (classes, splits)


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        ({"a": IMAGE, "b": IMAGE}, "read as 2 classes, one for each folder; 20% of each class are held out"),
        ({"bus": IMAGE, "train": IMAGE}, "read as 2 classes, one for each folder, also for 'train'; 20%"),
        ({"train": NESTED, "VALID": NESTED}, r"read as splits train/ \(train\), VALID/ \(validation\)$"),
        (
            {"train": NESTED, "val": NESTED, "extra": IMAGE, "test": IMAGE},
            r"\(validation\); ignored extra/, test/ \(images without class folders\)$",
        ),
        ({"train": NESTED, "test": "", "tools": ""}, r"\(train\); ignored tools/, test/ \(no images\); 20%"),
    ],
)
def test_the_decision_is_noted_once(tmp_path, folders, note):
    splits = open_source("folder", data_dir=make(tmp_path, **folders))
    notes = [line for source in splits if source is not None for line in source.notes]
    assert len(notes) == 1
    assert notes[0].startswith(f"{tmp_path}: ")
    with pytest.raises(AssertionError, match=note):
        raise AssertionError(notes[0])


@pytest.mark.parametrize(
    ("folders", "message", "as_classes", "as_splits"),
    [
        (
            {"bus": IMAGE, "car": IMAGE, "train": NESTED},
            r"got bus/ with images, car/ with images, train/ with folders of images, expected either classes, .* or "
            r"splits, .*Set --config\.source\.layout=classes or --config\.source\.layout=splits",
            (["bus", "car", "train"], HELD_OUT),
            (["cat", "dog"], HELD_OUT),
        ),
        (
            {"train": f"{NESTED} z.png", "test": NESTED},
            "test/ with folders of images, train/ with images and folders of images",
            (["test", "train"], HELD_OUT),
            (["cat", "dog"], ["train", "test"]),
        ),
        (
            {"train": NESTED, "val": NESTED, "valid": NESTED},
            "got the folders 'val' and 'valid', expected one for the split 'validation'.*layout=splits, which reads",
            (["train", "val", "valid"], HELD_OUT),
            (["cat", "dog"], ["train", "validation"]),
        ),
    ],
)
def test_an_ambiguous_layout_is_refused_until_the_key_settles_it(tmp_path, folders, message, as_classes, as_splits):
    root = make(tmp_path, **folders)
    with pytest.raises(UserError, match=message):
        open_source("folder", data_dir=root)
    assert classes_and_splits(open_source("folder", data_dir=root, layout="classes")) == as_classes
    assert classes_and_splits(open_source("folder", data_dir=root, layout="splits")) == as_splits


SPLITS_IN_CLASSES = {"cat": "train/x.png test/y.png test/z.png", "dog": "train/x.png test/y.png"}


@pytest.mark.parametrize(
    "folders",
    [SPLITS_IN_CLASSES, {"cat": "x.png y.png", "dog": "Training/x.png dev/y.png"}],
)
def test_splits_in_the_folders_of_classes_are_not_merged(tmp_path, folders):
    """Images of cat/test were trained on."""
    root = make(tmp_path, **folders)
    with pytest.raises(
        UserError, match=r"got splits in a class, .*Move the folders, or set --config\.source\.layout=c"
    ):
        open_source("folder", data_dir=root)
    with pytest.raises(UserError, match=r"or set --option layout=classes if"):
        open_test_folder(root, ["cat", "dog"])
    splits = open_source("folder", data_dir=root, layout="classes")
    assert classes_and_splits(splits) == (["cat", "dog"], HELD_OUT)
    assert len(open_test_folder(root, ["cat", "dog"], layout="classes")) == len(splits.train) + len(splits.test)


def test_a_folder_one_level_too_high(tmp_path):
    root = make(tmp_path / "photos", **{"data/train": NESTED, "data/test": NESTED})
    message = r"got only the folder data/ with the splits test/ and train/ in it, .*Set "
    with pytest.raises(UserError, match=rf"{message}--config\.source\.data_dir={root}/data, or set"):
        open_source("folder", data_dir=root)
    with pytest.raises(UserError, match=rf"{message}--data {root}/data, or set --option layout=classes"):
        open_test_folder(root, ["cat", "dog", "data"])
    assert classes_and_splits(open_source("folder", data_dir=f"{root}/data")) == (["cat", "dog"], HELD_OUT)


@pytest.mark.parametrize("names", [("train_set", "test_set"), ("fold_1", "fold_2"), ("2023", "a", "Trainset", "b")])
def test_splits_with_other_names_are_not_classes(tmp_path, names):
    """They were the two classes 'test_set' and 'train_set'."""
    root = make(tmp_path, **dict.fromkeys(names, NESTED))
    first, second = sorted(names)[:2]
    with pytest.raises(
        UserError,
        match=f"got {first}/ and {second}/ with the same folders in them, cat, dog, expected classes, .* Rename "
        rf"them to train/ and test/, or set --config\.source\.layout=classes if {first} and {second} are classes\.$",
    ):
        open_source("folder", data_dir=root)
    splits = open_source("folder", data_dir=root, layout="classes")
    assert classes_and_splits(splits) == (sorted(names), HELD_OUT)
    assert len(open_test_folder(root, names)) == 4 * len(names)  # these are the classes of the model


def test_the_folders_of_classes_may_have_folders(tmp_path):
    for number, folders in enumerate(
        (
            {"cat": "images/x.png images/y.png", "dog": "images/x.png images/y.png"},
            {"cat": "a/x.png b/y.png", "dog": "a/x.png c/y.png"},
            {"cat": "a/x.png b/y.png z.png", "dog": "a/x.png b/y.png z.png"},
            {"cat": "x.jpg/x.png y.png", "dog": "x.jpg/x.png y.png"},
        )
    ):
        splits = open_source("folder", data_dir=make(tmp_path / str(number), **folders))
        assert classes_and_splits(splits) == (["cat", "dog"], HELD_OUT)


def test_splits_in_the_classes_of_a_split(tmp_path):
    root = make(tmp_path, **{"train/cat": "train/x.png val/y.png", "train/dog": IMAGE, "val/cat": IMAGE})
    with pytest.raises(UserError, match=r"cat/train/ and cat/val/, .*set --config\.source\.layout=splits"):
        open_source("folder", data_dir=root)
    assert len(open_source("folder", data_dir=root, layout="splits").train) == 4


def test_a_class_may_have_a_folder_called_train(tmp_path):
    folders = {"vehicle": "train/x.png tram/y.png", "animal": "Test/x.png y.png", "plant": "test/x.png testing/y.png"}
    splits = open_source("folder", data_dir=make(tmp_path, **folders))
    assert classes_and_splits(splits) == (["animal", "plant", "vehicle"], HELD_OUT)


@pytest.mark.parametrize(
    ("link", "target"), [("val", "train"), ("train/cat", "../val/cat"), ("val/dog", "../train/cat")]
)
def test_a_folder_in_two_splits_is_refused(tmp_path, link, target):
    """Training images were validated on."""
    make(tmp_path, **{"train/cat": IMAGE, "train/dog": IMAGE, "val/cat": IMAGE, "val/dog": IMAGE})
    shutil.rmtree(tmp_path / link)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(UserError, match=r"got the same folder as .*/train/cat, expected other images for validation"):
        open_source("folder", data_dir=str(tmp_path))


def test_a_split_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    """The tests may run as root, who can read every folder."""
    root = make(tmp_path, **{f"{split}/{class_}": IMAGE for split in ("train", "val") for class_ in ("cat", "dog")})
    scandir = os.scandir

    def refuse(path="."):
        if os.path.basename(path) == "val":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        UserError, match=r"/val: cannot be read: Permission denied\. Check the path and its permissions"
    ):
        open_source("folder", data_dir=root)


def test_an_unknown_or_impossible_layout(tmp_path):
    root = make(tmp_path, a=IMAGE, b=IMAGE)
    with pytest.raises(UserError, match=r"source\.layout: got 'class', expected one of 'classes', 'splits'"):
        open_source("folder", data_dir=root, layout="class")
    with pytest.raises(UserError, match=r"got no splits, expected a folder 'train' .*layout=classes"):
        open_source("folder", data_dir=root, layout="splits")


@pytest.mark.parametrize(
    ("folders", "classes", "split", "count"),
    [
        ({"train": NESTED, "test": NESTED}, ["cat", "dog"], "test", 4),
        ({"Test": NESTED}, ["cat", "dog"], "test", 4),
        ({"dev": NESTED, "photos": IMAGE}, ["cat", "dog"], "validation", 4),
        ({"train": IMAGE, "test": IMAGE}, ["other", "test", "train"], "test", 4),
        # Ambiguous without the classes of the model.
        ({"bus": IMAGE, "train": "steam/x.png"}, ["bus", "train"], "test", 3),
        ({"bus": IMAGE, "train": NESTED}, ["cat", "dog"], "train", 4),
    ],
)
def test_a_test_folder_is_decided_with_the_models_classes(tmp_path, folders, classes, split, count):
    assert len(open_test_folder(make(tmp_path, **folders), classes, split)) == count


def test_an_ambiguous_test_folder(tmp_path):
    root = make(tmp_path, bus=IMAGE, train="bus/x.png bus/y.png train/x.png")
    with pytest.raises(UserError, match=r"Set --option layout=classes or --option layout=splits"):
        open_test_folder(root, ["bus", "train"])
    assert len(open_test_folder(root, ["bus", "train"], layout="classes")) == 5
    assert len(open_test_folder(root, ["bus", "train"], "train", layout="splits")) == 3
    with pytest.raises(UserError, match=r"got no folder for the split 'test' .*, expected one of train"):
        open_test_folder(root, ["bus", "train"], layout="splits")


@pytest.mark.parametrize(
    ("folders", "output", "class_"),
    [
        ({"cat": IMAGE, "dog": IMAGE}, "run/export/x", "run"),
        ({"cat": IMAGE, "dog": IMAGE}, "../link/run/x", "run"),
        ({"cat": IMAGE, "dog": IMAGE}, "x", None),  # a file makes no class
        ({"cat": IMAGE, "dog": IMAGE}, ".runs/a/x", None),
        ({"cat": IMAGE, "dog": IMAGE}, "../photos-run/x", None),
        ({"train": NESTED, "test": NESTED}, "run/x", None),  # beside the splits it is ignored
        ({"train": NESTED, "test": NESTED}, "test/run/x", "test/run"),
    ],
)
def test_an_output_that_would_be_a_class(tmp_path, folders, output, class_):
    root = Path(make(tmp_path / "photos", **folders))
    (tmp_path / "link").symlink_to(root)
    file = root / output
    if class_ is None:
        return check_outputs_outside([root / "y", file], root)
    with pytest.raises(UserError, match=f"got {root / class_}, which would be read as a class"):
        check_outputs_outside([root / "y", file], root)
    check_outputs_outside([file], "digits")
