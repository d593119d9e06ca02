"""What a check finds: copies by split and label, wrong labels, outliers, and nothing in clean data."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from support.images import random_image

from jaxvision.data import ArraySource, open_dataset
from jaxvision.data.dataset import Dataset
from jaxvision.errors import UserError
from jaxvision.features import Features, Findings, check, write_check

CLASSES = ("cat", "dog")


def center(label: int) -> np.ndarray:
    """Returns the center of a class; those of two classes are almost orthogonal."""
    return np.random.default_rng(label).choice([-1.0, 1.0], 64)


class Photos:
    """Images by split whose features are random vectors around the center of their class."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.rows: list[tuple[np.ndarray, np.ndarray, int, str]] = []

    def add(self, image: np.ndarray, label: int, split: str, vector: np.ndarray | None = None) -> np.ndarray:
        """Adds an image; `vector` is that of the image of which it is a copy. Returns its feature vector."""
        if vector is None:
            vector = 0.4 * self.rng.normal(size=64) + center(label)
        self.rows.append((image, vector + 0.02 * self.rng.normal(size=64), label, split))
        return vector

    def fill(self, split: str = "train", *, each: int = 15, seed: int = 0) -> Photos:
        for i in range(2 * each):
            self.add(random_image(seed + i), i % 2, split)
        return self

    def check(self, classes: tuple[str, ...] = CLASSES) -> tuple[Findings, dict[str, Dataset]]:
        parts = dict.fromkeys(split for *_, split in self.rows)
        images = {}
        for split in parts:
            stack, _, labels, _ = zip(*(row for row in self.rows if row[3] == split), strict=True)
            source = ArraySource(np.stack(stack), np.array(labels), classes=classes or ("",), name=split)
            images[split] = open_dataset(source)
        rows = sorted(self.rows, key=lambda row: list(parts).index(row[3]))
        index = np.concatenate([np.arange(len(part)) for part in images.values()])
        features = Features(
            values=np.stack([row[1] for row in rows]).astype(np.float32),
            label=np.array([row[2] if classes else -1 for row in rows], np.int32),
            index=index,
            path=tuple(f"{row[3]}/{i}" for row, i in zip(rows, index, strict=True)),
            split=tuple(row[3] for row in rows),
            classes=classes,
        )
        return check(features, images), images


def found(findings: Findings) -> list[tuple]:
    path = findings.features.path
    return [
        (f.kind, path[f.row], None if f.partner is None else path[f.partner], f.suggested) for f in findings.findings
    ]


def test_nothing_is_found_in_clean_data() -> None:
    findings, _ = Photos().fill(each=60).fill("test", each=20, seed=200).check()
    assert [each for each in found(findings) if each[0] != "outlier"] == []
    assert len(findings.of("outlier")) <= 5  # of 160: the most unusual of valid images


def test_copies_by_split_and_label() -> None:
    photos = Photos().fill()
    shared, both, twice = random_image(200), random_image(201), random_image(202)
    vector = photos.add(shared, 0, "train")  # train/30
    photos.add(shared[:, ::-1], 1, "test", vector)  # test/0: in another split, which counts more than its other label
    photos.add(shared, 0, "train", vector)  # train/31
    vector = photos.add(both, 0, "train")  # train/32
    photos.add(both, 1, "train", vector)  # train/33
    vector = photos.add(twice, 1, "train")  # train/34
    photos.add(twice, 1, "train", vector)  # train/35
    findings, _ = photos.check()
    assert [each for each in found(findings) if each[0] in ("leak", "duplicate")] == [
        ("leak", "train/30", "test/0", None),
        ("leak", "train/31", "test/0", None),
        ("duplicate", "train/35", "train/34", None),
    ]
    (conflict,) = findings.of("conflict")
    assert {conflict.row, conflict.partner} == {32, 33}
    assert findings.features.label[conflict.partner] == conflict.suggested
    assert [f.note for f in findings.of("leak")] == ["mirrored", "mirrored"]
    assert findings.of("duplicate")[0].note == "identical files"


def test_swapped_labels_are_found() -> None:
    photos = Photos().fill(each=30)
    for row in (3, 8):
        image, vector, label, split = photos.rows[row]
        photos.rows[row] = image, vector, 1 - label, split
    findings, _ = photos.check()
    assert {(row, suggested) for kind, row, _, suggested in found(findings) if kind == "label"} == {
        ("train/3", 1),
        ("train/8", 0),
    }
    assert all(0 < f.score <= 1 for f in findings.of("label"))
    assert findings.estimated_label_errors == 2


def test_an_image_unlike_the_others_is_an_outlier() -> None:
    photos = Photos().fill(each=30)
    noise = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    photos.add(noise, 0, "train", center(9))
    findings, _ = photos.check()
    outliers = [row for kind, row, *_ in found(findings) if kind == "outlier"]
    assert outliers[0] == "train/60"
    assert len(outliers) <= 3


def test_a_weak_classifier_is_named() -> None:
    photos = Photos().fill(each=20)
    photos.rows = [(image, vector, (i // 2) % 2, split) for i, (image, vector, _, split) in enumerate(photos.rows)]
    assert [note for note in photos.check()[0].notes if "agrees with only" in note]


def test_images_that_are_all_alike_are_named() -> None:
    photos = Photos()
    for i in range(20):
        image = random_image(0).copy()
        image[:3, i] = 0
        photos.add(image, i % 2, "train")
    assert [note for note in photos.check()[0].notes if "18 of 20 images pass as copies" in note]


def test_one_class_and_few_images() -> None:
    one = Photos()
    for i in range(6):
        one.add(random_image(i), 0, "train")
    findings, _ = one.check(("cat",))
    assert found(findings) == []
    assert findings.estimated_label_errors is None
    assert ["Labels were not checked" in note for note in findings.notes] == [True, False]
    assert "Outliers were not searched, because 6 images are too few" in findings.notes[1]
    assert "because the images have no classes" in one.check(())[0].notes[0]
    one.rows = one.rows[:1]
    with pytest.raises(UserError, match="check: got 1 image, expected two or more"):
        one.check(("cat",))


def test_labels_of_too_many_images_and_classes_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxvision.features.dataset_check.findings.MOST", 10)
    findings, _ = Photos().fill().check()
    assert findings.estimated_label_errors is None
    assert [note for note in findings.notes if "too many images and classes for the memory of a laptop" in note]


def test_a_class_of_two_images_is_named_and_not_judged() -> None:
    photos = Photos().fill()
    for seed in (300, 301):
        photos.add(random_image(seed), 2, "train")
    findings, _ = photos.check(("cat", "dog", "owl"))
    assert [note for note in findings.notes if "fewer than 5 images were not checked: owl" in note]
    assert findings.of("label") == []


def test_the_table_and_the_page(tmp_path: Path) -> None:
    photos = Photos().fill()
    shared = random_image(200)
    vector = photos.add(shared, 0, "train")
    photos.add(shared, 0, "test", vector)
    findings, images = photos.check(("cat", "<b>dog"))
    page, table = write_check(tmp_path / "new", findings, images, name="my photos")
    with table.open(encoding="utf-8", newline="") as file:
        row, *others = csv.DictReader(file)
    assert {other["kind"] for other in others} <= {"outlier"}
    assert row == {
        "kind": "leak",
        "path": "train/30",
        "split": "train",
        "label": "cat",
        "suggested_label": "",
        "partner": "test/0",
        "partner_split": "test",
        "partner_label": "cat",
        "score": "1.0000",
        "note": "identical files",
        "action": "delete from train",
    }
    html = page.read_text(encoding="utf-8")
    assert html.count("<img ") == 2 + len(others)
    assert "http" not in html.replace("http-equiv", "")  # loads nothing
    assert "Leaks: 1" in html
    assert "Duplicates: " not in html  # only counted
