"""jaxvision.data: a validation part that is held out of the training data of any source."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from jaxvision.data import ArraySource, Splits, open_dataset
from jaxvision.data.source import empty_classes_text, names_checksum, open_source, validation_share
from jaxvision.errors import UserError

LABELS = np.repeat(np.arange(3), [50, 20, 10])


class Together(ArraySource):
    """A source of images of several sizes that reads several of them together, and does not know its labels."""

    labels = None  # type: ignore[assignment]

    def __init__(self):
        images = np.zeros((80, 4, 4, 1), np.uint8)
        super().__init__(images, LABELS, classes=["a", "b", "c"], name="together")
        self.true, self.labels = LABELS, None

    def __getitem__(self, index):
        return {"image": np.full((20 + index, 24, 1), index, np.uint8), "label": int(self.true[index])}

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Unreadable(ArraySource):
    """A source whose image 3 cannot be read."""

    def __getitem__(self, index):
        if index == 3:
            raise OSError("cannot read it")
        return super().__getitem__(index)


def arrays(kind=ArraySource):
    images = np.arange(80, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    return kind(images, LABELS, classes=["a", "b", "c"], name="mine")


def of_arrays(*, split_seed: int = 0) -> Splits:
    return Splits(train=arrays(), test=arrays())


def with_validation() -> Splits:
    return Splits(train=arrays(), validation=arrays())


def together() -> Splits:
    return Splits(train=Together(), test=arrays())


def unreadable() -> Splits:
    return Splits(train=arrays(Unreadable), test=arrays())


def test_a_share_of_each_class_is_held_out():
    train, validation, test = open_source(of_arrays, validation_fraction=0.1)
    assert np.bincount(validation.labels).tolist() == [5, 2, 1]
    assert np.bincount(train.labels).tolist() == [45, 18, 9]
    assert len(test) == 80
    images = [[int(part[i]["image"][0, 0, 0]) for i in range(len(part))] for part in (train, validation)]
    assert sorted(images[0] + images[1]) == list(range(80))  # each image is in one of them
    assert [part[i]["label"] for part in (train, validation) for i in range(len(part))] == [
        *train.labels,
        *validation.labels,
    ]
    assert validation.where(2) == arrays().where(images[1][2])
    assert list(train.classes) == ["a", "b", "c"]
    copy = pickle.loads(pickle.dumps(validation))  # for the workers
    assert copy[2]["image"][0, 0, 0] == images[1][2]


def test_the_choice_is_seeded_by_the_key_of_the_source():
    def held(**options):
        return [example["image"][0, 0, 0] for example in open_source(of_arrays, validation_fraction=0.1, **options)[1]]

    assert held() == held(split_seed=0) != held(split_seed=1)
    train, validation, test = open_source("digits", validation_fraction=0.2)
    assert (len(train), len(validation), len(test)) == (1151, 287, 359)


def test_labels_that_are_known_only_after_reading():
    train, validation, _ = open_source(together, validation_fraction=0.25)
    assert (len(train), len(validation), train.labels) == (60, 20, None)
    examples = validation.__getitems__([0, 19])
    assert [example["image"].shape for example in examples] == [validation[i]["image"].shape for i in (0, 19)]
    assert len(open_dataset(train)) == 60


def test_an_image_that_cannot_be_read_is_skipped_in_a_part_as_well():
    messages: list[str] = []
    train, validation, _ = open_source(unreadable, validation_fraction=0.1)
    found = [open_dataset(part, max_corrupt=1, log=messages.append).corrupt for part in (train, validation)]
    assert len(found[0]) + len(found[1]) == 1
    assert "mine[3]" in messages[0]


@pytest.mark.parametrize(
    ("source", "fraction", "message"),
    [
        (with_validation, 0.1, r"validation_fraction: got 0\.1 for a source with a validation split\. Set source\."),
        (of_arrays, 0.0, r"source\.validation_fraction: got 0\.0, expected a number between 0 and 1"),
        (of_arrays, 1.0, r"source\.validation_fraction: got 1\.0, expected a number between 0 and 1"),
    ],
)
def test_what_cannot_be_held_out(source, fraction, message):
    with pytest.raises(UserError, match=message):
        open_source(source, validation_fraction=fraction)


def rare(*, split_seed: int = 0) -> Splits:
    """One image of the classes "b" and "c"."""
    images = np.zeros((12, 4, 4, 1), np.uint8)
    source = ArraySource(images, np.array([0] * 10 + [1, 2]), classes=["a", "b", "c"], name="rare")
    return Splits(train=source, test=source)


def test_classes_without_an_image_are_named():
    train, validation, test = open_source(rare, validation_fraction=0.2)
    assert [empty_classes_text(part) for part in (train, validation, test)] == [
        "",
        "2 of 3 classes have no image: 'b', 'c'",
        "",
    ]


def test_the_checksum_of_a_part_asks_for_no_names_that_its_source_has_summed() -> None:
    """The names of ten million files take a minute."""

    class Summed(ArraySource):
        def names_checksum(self) -> int:
            return 1

        def where(self, index: int) -> str:
            raise AssertionError("asked for a name")

    summed = arrays(Summed)
    parts = [
        open_source(lambda **_: Splits(train=summed, test=arrays()), validation_fraction=fraction).train
        for fraction in (0.1, 0.1, 0.2)
    ]
    first, again, other = map(names_checksum, parts)
    assert first == again != other


def one_each() -> Splits:
    images = np.zeros((3, 4, 4, 1), np.uint8)
    return Splits(train=ArraySource(images, np.arange(3), classes=["a", "b", "c"], name="mine"), test=arrays())


def test_the_number_of_images_chooses_the_share() -> None:
    """80 images: a fifth, 16. Data with a validation split, or with one image of each class, stay as they are."""
    train, validation, _ = open_source(of_arrays, validation_fraction="auto")
    assert np.bincount(validation.labels).tolist() == [10, 4, 2]
    assert train.notes == ["16 of 80 training images are held out for validation"]
    assert len(open_source(with_validation, validation_fraction="auto").train) == 80
    assert open_source(one_each, validation_fraction="auto").validation is None


@pytest.mark.parametrize(
    ("images", "held"), [(10, 2), (499, 99.8), (501, 100), (999, 100), (3000, 300), (50_000, 5000), (1_000_000, 5000)]
)
def test_the_share_for_a_number_of_images(images: int, held: float) -> None:
    assert images * validation_share(images) == pytest.approx(held)
