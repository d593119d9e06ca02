"""`jaxvision evaluate`: as the run evaluated, and under the name of what is evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.quick import quick

from jaxvision import cli, run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.run.workdir import write_config


def mistakes(evaluation, *, scale: float = 1.0) -> float:
    """Returns the number of wrong predictions, times `scale`."""
    return scale * len(evaluation.mistakes(evaluation.count))


def jaxvision(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    return (status, *capsys.readouterr())


def evaluated(capsys: pytest.CaptureFixture, *arguments: object) -> dict[str, float]:
    status, out, err = jaxvision(capsys, "evaluate", "--json", "--batch-size", 64, *arguments)
    assert status == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The workdir of a finished run whose loss, metric and data are not the defaults, and its result."""
    workdir = tmp_path_factory.mktemp("run")
    config = quick(
        "resnet",
        train={"steps": 2},
        source={"test_fraction": 0.5, "validation_fraction": 0.2},
        loss={"kind": "sigmoid", "label_smoothing": 0.1},
        metric={"name": mistakes, "scale": 2.0},
    )
    return workdir, run.train(config, workdir)


def test_as_the_run_did(finished: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture) -> None:
    workdir, expected = finished
    assert expected["count"] == 898
    # The loss of a sigmoid and its confidences, hence the calibration error, differ from those of a softmax.
    assert evaluated(capsys, "-m", workdir) == pytest.approx(expected, rel=1e-5)
    validation = evaluated(capsys, "-m", workdir / "export", "--split", "validation")
    assert validation["count"] == 179
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["split"] == "validation")
    assert validation == pytest.approx({key: logged[key] for key in validation}, rel=1e-5)


@pytest.mark.slow
def test_other_options_of_the_same_source(
    finished: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture
) -> None:
    workdir, expected = finished
    assert evaluated(capsys, "-m", workdir, "--data", "digits") == pytest.approx(expected, rel=1e-5)
    assert evaluated(capsys, "-m", workdir, "--option", "test_fraction=0.1")["count"] == 179


def test_a_copy_of_the_export_is_not_part_of_a_run(
    finished: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = shutil.copytree(finished[0] / "export", tmp_path / "export")
    # The data and the metric are those of the run; the export itself records how logits become probabilities.
    found = evaluated(capsys, "-m", copy, "--data", "digits", "--option", "test_fraction=0.5")
    assert found == pytest.approx({key: x for key, x in finished[1].items() if key != "mistakes"}, rel=1e-5)
    status, _, err = jaxvision(capsys, "evaluate", "-m", copy)
    assert status == 2
    assert "is not the workdir of a run, expected a folder or a source. Add --data." in err


def test_functions_of_a_config_file(
    finished: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir, expected = finished
    shutil.copytree(workdir / "export", tmp_path / "run" / "export")
    record = json.loads((workdir / "config.json").read_text())
    record["source"]["name"] = "_jaxvision_config_sources:own"
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    status, _, err = jaxvision(capsys, "evaluate", "-m", tmp_path / "run")
    assert (status, err.count("\n")) == (2, 1)
    assert "source.name: got 'own' of the config file sources.py, which is not loaded. Add --config sources.py" in err
    file = tmp_path / "sources.py"
    file.write_text(
        "from jaxvision.data import open_source\n"
        "def own(*, test_fraction, validation_fraction, split_seed=0):\n"
        "    return open_source('digits', test_fraction=test_fraction, validation_fraction=validation_fraction)\n"
        "def get_config():\n    return {}\n"
    )
    assert evaluated(capsys, "-m", tmp_path / "run", "--config", file) == pytest.approx(expected, rel=1e-5)
    record["source"]["name"] = "__main__:own"
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    assert "got 'own' of another script or notebook" in jaxvision(capsys, "evaluate", "-m", tmp_path / "run")[2]


@pytest.mark.parametrize("folder", [".", "train"])
def test_images_that_the_run_was_trained_on(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The result was too good without a word."""
    photos = tmp_path / "photos"
    for name in ("cat", "dog"):
        (photos / folder / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(photos / folder / name / f"{i}.png")
    model = create_model("test_resnet", num_classes=2, image_size=32)
    save_classifier(tmp_path / "run" / "export", Classifier(model, ("cat", "dog"), Preprocess(image_size=32)))
    source = {"name": "folder", "data_dir": str(photos), "validation_fraction": 0.25}
    write_config(tmp_path / "run", run.complete(quick("resnet", source=source)))
    (tmp_path / "link").symlink_to(photos / folder)
    shutil.copytree(photos / folder, tmp_path / "copy")

    def evaluate(*arguments: object) -> str:
        status, out, err = jaxvision(capsys, "evaluate", "-m", tmp_path / "run", *arguments)
        assert status == 0, err
        return " ".join((out + err).split())

    # Of 10 images of a class 2 are held out for testing, and 2 of the other 8 for validation.
    message = "12 of the 20 images (60%) were trained on, so the result is better than for new images. Leave out --data"
    for data in (photos / folder, tmp_path / "link"):
        assert message in evaluate("--data", data, "--report", tmp_path / "report", "--overwrite")
        assert "(60%) were trained on" in (tmp_path / "report" / "report.html").read_text()
    for arguments in ((), ("--data", tmp_path / "copy")):
        assert "were trained on" not in evaluate(*arguments)


def test_the_name_of_what_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = create_model("test_resnet", num_classes=2, image_size=32)
    export = save_classifier(tmp_path / "export", Classifier(model, ("cat", "dog"), Preprocess(image_size=32)))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "images" / split / name / "0.png")

    def names(*arguments: object) -> list[str]:
        status, out, err = jaxvision(capsys, "evaluate", "-m", export, "--data", *arguments)
        assert status == 0, err
        (line,) = [line for line in out.splitlines() if line.startswith("  data ")]
        assert line.startswith(f"  data        {arguments[0]}")
        assert line.endswith(", 2 classes: 2 images")
        assert "(" not in line
        return [name for name in ("train", "test", "photos") if f" {name}\n" in out.partition("devices")[2]]

    assert names(tmp_path / "images") == ["test"]
    assert names(tmp_path / "images", "--split", "train") == ["train"]
    assert names(tmp_path / "images" / "train") == ["train"]
    (tmp_path / "images" / "train").rename(tmp_path / "photos")
    assert names(tmp_path / "photos") == ["photos"]
