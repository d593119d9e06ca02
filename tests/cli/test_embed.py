"""`jaxvision embed`: what it writes, skips and refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.against_timm import random_model
from support.images import class_folders

from jaxvision import cli
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.features import load_features


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classifier = Classifier(
        random_model("test_resnet", num_classes=2, image_size=32), ("a", "b"), Preprocess(image_size=32)
    )
    return save_classifier(tmp_path_factory.mktemp("model"), classifier)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxvision" / "features"


def embed(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = cli.main(["embed", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, " ".join(out.split()), err


def test_splits(model: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture) -> None:
    for split, seed in (("train", 0), ("test", 500)):
        class_folders(tmp_path / "photos" / split, ["cat", "dog"], each=3, seed=seed)
    for name in ("x.npz", "x.parquet"):
        status, out, err = embed(capsys, tmp_path / "photos", "-m", model, "-o", tmp_path / name)
        assert status == 0, err
        assert "96 features of 12 images" in out
        features = load_features(tmp_path / name)
        assert features.split == ("train",) * 6 + ("test",) * 6
        assert features.label.tolist() == [0, 0, 0, 1, 1, 1] * 2
        assert features.classes == ("cat", "dog")
    assert f"the features of 6 of 6 images are in {cache}" in out
    with np.load(tmp_path / "x.npz") as file:  # without jaxvision
        assert file["features"].shape == (12, 96)
        assert file["classes"][file["label"][-1]] == "dog"


def test_all_splits_have_one_transform(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The same image has the same features, whether its split is streamed or kept in memory."""
    photos = tmp_path / "photos"
    for split in ("train", "test"):
        class_folders(photos / split, ["cat", "dog"], each=4)
    for file in (photos / "test").glob("*/[13].png"):  # those left have one size, and are kept in memory
        file.unlink()
    assert embed(capsys, photos, "-m", model, "-o", tmp_path / "x.npz")[0] == 0
    features = load_features(tmp_path / "x.npz")
    rows = {tuple(path.rsplit("/", 3)[1:]): i for i, path in enumerate(features.path)}
    pairs = [(i, rows[("train", *file)]) for (split, *file), i in rows.items() if split == "test"]
    assert len(pairs) == 4
    for of_test, of_train in pairs:
        np.testing.assert_allclose(features.values[of_test], features.values[of_train], rtol=0, atol=0.01)


def test_images_without_classes_and_a_level(model: Path, tmp_path: Path, cache: Path, capsys) -> None:
    photos = class_folders(tmp_path / "photos", ["."], each=3)
    output = tmp_path / "new" / "x.npz"
    assert embed(capsys, photos, "-m", model, "-o", output, "--level", "layer1", "--no-cache")[0] == 0
    features = load_features(output)
    assert (features.values.shape, features.classes, features.label.tolist()) == ((3, 32), (), [-1] * 3)
    assert not cache.exists()


def test_damaged_images(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos = class_folders(tmp_path / "photos", ["cat", "dog"], each=12)
    for i in range(11):  # one more than training accepts
        (photos / "cat" / f"{i}.png").write_bytes(b"not an image")
    status, out, _ = embed(capsys, photos, "-m", model, "-o", tmp_path / "x.npz")
    assert (status, len(load_features(tmp_path / "x.npz"))) == (1, 13)
    assert "skipped the damaged image" in out


def test_a_check(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos = tmp_path / "photos"
    for split, seed in (("train", 0), ("test", 500)):
        class_folders(photos / split, ["cat", "dog"], each=6, seed=seed)
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "test" / "cat" / "copy.png")
    status, out, err = embed(capsys, photos, "-m", model, "--check", tmp_path / "check")
    assert status == 0, err
    assert "leaks: 1, copies in another split" in out
    assert sorted(path.name for path in (tmp_path / "check").iterdir()) == ["check.html", "findings.csv"]
    (leak,) = [row for row in (tmp_path / "check" / "findings.csv").read_text().splitlines() if row.startswith("leak")]
    assert f"{photos}/train/cat/0.png,train,cat,,{photos}/test/cat/copy.png,test,cat,1.0000,identical files" in leak
    status, _, err = embed(capsys, photos, "-m", model, "--check", tmp_path / "check")
    assert (status, err.count("\n")) == (2, 1)
    assert "check.html and 1 more of its outputs exist already" in err
    output = tmp_path / "x.npz"
    assert embed(capsys, photos, "-m", model, "--check", tmp_path / "check", "-o", output, "--overwrite")[0] == 0
    assert output.exists()


def test_refusals(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos = class_folders(tmp_path / "photos", ["cat", "dog"], each=2)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    output = tmp_path / "x.npz"
    for data, out, options, message in [
        (tmp_path / "none", output, (), "expected a folder that exists or one of the sources digits"),
        (tmp_path / "empty", output, (), "got no images"),
        (photos, output, ("--level", "layer9"), "expected a level of test_resnet. Did you mean"),
        (photos, output, ("--batch-size", 5), "--batch-size: got 5, expected a multiple of 8 devices"),
        (photos, output, ("--option", "kind=x"), "expected an option of a folder"),
        (photos, output, ("--option", "data=x"), "got 'data', expected an option of the source"),
        (photos, tmp_path / "x.csv", (), "got the ending '.csv', expected .npz or .parquet"),
        (photos, tmp_path / "file" / "x.npz", (), "got a file, expected a folder"),
        (photos, tmp_path / "file", ("--overwrite",), "got the ending ''"),
    ]:
        status, _, err = embed(capsys, data, "-m", model, "-o", out, *options)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
    status, _, err = embed(capsys, photos, "-m", model)
    assert (status, err.count("\n")) == (2, 1)
    assert "got no output, expected one. Add -o FILE for the features, or --check FOLDER" in err
    err = embed(capsys, photos, "-m", model, "--check", photos / "check")[2]
    assert f"output: got {photos / 'check'}, which would be read as a class of {photos}" in err
    assert not (photos / "check").exists()
    output.write_text("mine")
    assert "exists already" in embed(capsys, photos, "-m", model, "-o", output)[2]
    assert output.read_text() == "mine"
