"""A linear probe as a run: its result, what other commands read, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from support.against_timm import random_model
from support.images import class_folders
from support.reference import import_timm

from jaxvision import cli, load_classifier
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.data import open_source
from jaxvision.errors import UserError
from jaxvision.run import recorded
from jaxvision.run.probe import probe


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_model("test_resnet", num_classes=2, image_size=32)
    return save_classifier(
        tmp_path_factory.mktemp("backbone"), Classifier(model, ("a", "b"), Preprocess(image_size=32))
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("photos"), ["cat", "dog", "owl"], each=6)


@pytest.fixture(scope="module")
def finished(backbone: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    workdir = tmp_path_factory.mktemp("run") / "probe"
    return workdir, probe(backbone, photos, workdir)


def command(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    return (status, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    status, _, err = command(capsys, *arguments)
    assert (status, err.count("\n")) == (2, 1), err
    return err


def test_the_result_is_that_of_the_cross_validation(finished: tuple[Path, dict[str, float]], photos: Path) -> None:
    workdir, metrics = finished
    assert metrics["count"] == 18
    assert metrics["top1"] == metrics["cross_validated_accuracy"] > 0.6
    result = json.loads((workdir / "result.json").read_text())
    assert (result["split"], result["metrics"]["top1"]) == ("cross-validation", metrics["top1"])
    with (workdir / "mistakes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == round(18 * (1 - metrics["top1"]))
    page = (workdir / "report.html").read_text()
    for text in ("Each image was predicted by a classifier that was not fitted to it (5 folds)", "log10 of the regul"):
        assert text in page
    curve = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][:-1]
    assert {line["split"] for line in curve} == {"cross-validation"}
    assert min(curve, key=lambda line: line["loss"])["regularization"] == metrics["regularization"]


def test_other_commands_read_it(
    finished: tuple[Path, dict[str, float]], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir, _ = finished
    image = photos / "dog" / "0.png"
    status, out, _ = command(capsys, "predict", "-m", workdir, image, "--json")
    assert status == 0
    assert {row["label"] for row in json.loads(out)["predictions"]} == {"cat", "dog", "owl"}
    assert command(capsys, "attention", "-m", workdir, image, "-o", tmp_path / "map.png")[0] == 0
    assert command(capsys, "convert", workdir, tmp_path / "converted")[0] == 0
    status, out, err = command(capsys, "evaluate", "-m", workdir, "--split", "train", "--json")
    assert status == 0, err
    assert json.loads(out)["top1"] == 1.0  # fitted to these
    assert load_classifier("test_resnet", checkpoint_path=workdir).classes == ("cat", "dog", "owl")
    assert recorded.recorded_config(workdir).source.data_dir == str(photos)
    assert "has neither test nor validation data. Add --data" in refused(capsys, "evaluate", "-m", workdir)


def test_a_finished_probe(
    finished: tuple[Path, dict[str, float]], backbone: Path, photos: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir, metrics = finished
    before = (workdir / "report.html").stat().st_mtime_ns
    assert probe(backbone, photos, workdir) == pytest.approx(metrics)
    assert (workdir / "report.html").stat().st_mtime_ns == before
    assert "this probe is finished" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"got another config than this run was started with: probe.folds 5 -> 3"):
        probe(backbone, photos, workdir, folds=3)
    with pytest.raises(UserError, match="got another config than this run was started with"):
        probe(backbone, "digits", workdir)
    class_folders(photos, ["owl"], each=7)
    try:
        with pytest.raises(UserError, match=r"probe.images.train.number 18 -> 19"):
            probe(backbone, photos, workdir)
    finally:
        (photos / "owl" / "6.png").unlink()
        class_folders(photos, ["cat", "dog", "owl"], each=6)
    (workdir / "mistakes.csv").unlink()
    assert probe(backbone, photos, workdir) == pytest.approx(metrics)
    assert (workdir / "mistakes.csv").exists()


def test_a_finished_probe_of_other_weights(backbone: Path, photos: Path, tmp_path: Path) -> None:
    """The folder has the same name, but was trained further since."""
    folder = Path(shutil.copytree(backbone, tmp_path / "model"))
    metrics = probe(folder, photos, tmp_path / "run")
    assert probe(folder, photos, tmp_path / "run") == pytest.approx(metrics)
    classifier = load_classifier(folder)
    bias = classifier.model.fc.bias
    bias[...] = bias[...] + 1  # the head is not used
    save_classifier(folder, classifier)
    assert probe(folder, photos, tmp_path / "run") == pytest.approx(metrics)
    stem = classifier.model.conv1[0].kernel
    stem[...] = stem[...] * 1.5
    save_classifier(folder, classifier)
    with pytest.raises(UserError, match=r"got another config than this run was .*: probe\.weights\.checksum '"):
        probe(folder, photos, tmp_path / "run")


def test_a_source_with_test_data(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The test accuracy is that of scikit-learn on the same features, and that of `jaxvision evaluate`."""
    status, _, err = command(
        capsys,
        "probe",
        "--data",
        "digits",
        "-m",
        backbone,
        "--workdir",
        tmp_path / "run",
        "--cache",
        tmp_path / "cache",
    )
    assert status == 0, err
    metrics: dict[str, Any] = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["count"] == 359
    own, splits = load_classifier(backbone, in_channels=1), open_source("digits")
    from jaxvision.data import open_dataset
    from jaxvision.features import extract

    train, test = (extract(own, open_dataset(each)) for each in (splits.train, splits.test))
    scaler = StandardScaler().fit(train.values)
    reference = LogisticRegression(C=1 / (len(train) * metrics["regularization"]), max_iter=5000)
    reference.fit(scaler.transform(train.values), train.label)
    assert metrics["top1"] == pytest.approx(reference.score(scaler.transform(test.values), test.label), abs=0.006)
    assert metrics["top1"] > 0.8
    assert 0.5 < metrics["test_knn_accuracy"] <= 1
    status, out, err = command(capsys, "evaluate", "-m", tmp_path / "run", "--json")
    assert status == 0, err
    evaluated = json.loads(out)
    assert evaluated == pytest.approx({key: metrics[key] for key in evaluated}, abs=3e-3)


def test_all_splits_have_one_transform(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The training images have two sizes and are streamed, with a crop. Those of the test are kept in memory."""
    class_folders(tmp_path / "data" / "train", ["cat", "dog", "owl"], each=6)
    test = class_folders(tmp_path / "data" / "test", ["cat", "dog", "owl"], each=6, seed=2000)
    for file in test.glob("*/[135].png"):  # which are higher
        file.unlink()
    metrics = probe(backbone, tmp_path / "data", tmp_path / "run")
    capsys.readouterr()
    status, out, err = command(capsys, "evaluate", "-m", tmp_path / "run", "--json")
    assert status == 0, err
    assert json.loads(out)["loss"] == pytest.approx(metrics["loss"], rel=1e-3)


def test_splits_of_a_folder(backbone: Path, photos: Path, tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 1000), ("test", 2000)):
        class_folders(tmp_path / "data" / split, ["cat", "dog"], each=4, seed=seed)
    metrics = probe(backbone, tmp_path / "data", tmp_path / "run")
    assert metrics["count"] == 8
    assert {"knn_accuracy", "test_knn_accuracy"} <= metrics.keys()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["split"] == "test"


def test_one_image_for_each_class(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class_folders(tmp_path / "data" / "train", ["cat", "dog"], each=1)
    with pytest.raises(UserError, match="got one image for each class and no test images"):
        probe(backbone, tmp_path / "data" / "train", tmp_path / "no-test")
    assert not (tmp_path / "no-test" / "config.json").exists()
    class_folders(tmp_path / "data" / "test", ["cat", "dog"], each=2, seed=50)
    assert probe(backbone, tmp_path / "data", tmp_path / "run")["count"] == 4
    assert "no class has two images, so the regularization is" in " ".join(capsys.readouterr().out.split())


def test_damaged_images(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = class_folders(tmp_path / "data", ["cat", "dog"], each=5)
    (data / "cat" / "3.png").write_bytes(b"no image")
    assert probe(backbone, data, tmp_path / "run")["count"] == 9
    assert "skipped 1 damaged image of the train data" in (tmp_path / "run" / "report.html").read_text()
    arguments = ("probe", "--data", data, "-m", backbone, "--workdir", tmp_path / "strict", "--no-cache")
    assert "got 1 damaged image, expected at most" in refused(capsys, *arguments, "--max-corrupt", 0)


def test_refusals(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = class_folders(tmp_path / "one", ["cat"])
    flat = class_folders(tmp_path / "flat", ["."])
    two = class_folders(tmp_path / "two", ["cat", "dog"])
    (tmp_path / "file").write_text("")
    common = ("-m", backbone, "--no-cache", "--workdir")
    for data, workdir, message in [
        (tmp_path / "none", "run", "expected a folder that exists or one of the sources digits"),
        (one, "run", "got 1 class, expected two or more"),
        (flat, "run", "got 1 class, expected two or more"),
        (two, "file", "file"),
        (two, "two/run", "two/run, which would be read as a class of"),
        (two, "two", "two/export, which would be read as a class of"),
    ]:
        assert message in refused(capsys, "probe", "--data", data, *common, tmp_path / workdir)
    assert "expected a multiple of 8 devices" in refused(
        capsys, "probe", "--data", two, *common, tmp_path / "run", "--batch-size", 3
    )
    assert "max_corrupt (--max-corrupt): got -1, expected 0 or more" in refused(
        capsys, "probe", "--data", two, *common, tmp_path / "run", "--max-corrupt", -1
    )
    assert "folds (--folds): got 1, expected 2 or more" in refused(
        capsys, "probe", "--data", two, *common, tmp_path / "run", "--folds", 1
    )
    assert "--option: got 'folds', expected an option of the source" in refused(
        capsys, "probe", "--data", two, *common, tmp_path / "run", "--option", "folds=3"
    )
    monkeypatch.setattr("jaxvision.features.probe.MOST", 10)
    assert "got 8 images and 2 classes, for which a fit takes" in refused(
        capsys, "probe", "--data", two, *common, tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()
    assert sorted(path.name for path in two.iterdir()) == ["cat", "dog"]


@pytest.mark.timm
def test_timm_reads_the_export(finished: tuple[Path, dict[str, float]], photos: Path) -> None:
    import torch

    workdir, _ = finished
    theirs = import_timm().create_model(f"local-dir:{workdir / 'export'}", pretrained=True).eval()
    own = load_classifier(workdir)
    x = own.images([photos / "cat" / "0.png", photos / "owl" / "1.png"])
    with torch.no_grad():
        wanted = theirs(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(own.model(x), wanted, atol=1e-4 * np.abs(wanted).max())
