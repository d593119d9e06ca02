"""A run that was stopped for good: exports of its checkpoints, and a workdir given instead of a weight file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.quick import quick

from jaxvision import cli, run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.data import open_source
from jaxvision.errors import UserError
from jaxvision.eval import evaluate
from jaxvision.run import config
from jaxvision.run.workdir import write_config

SOURCE = {"test_fraction": 0.5, "validation_fraction": 0.2}

CONFIG = """
from jaxvision.data import open_source
from support.quick import quick


def own(*, test_fraction, validation_fraction):
    return open_source("digits", test_fraction=test_fraction, validation_fraction=validation_fraction)


def stopping(evaluation):
    # Interrupts the third evaluation. The first, whose number is the lowest, is the best.
    stopping.calls += 1
    if stopping.calls == 3:
        raise KeyboardInterrupt
    return stopping.calls


stopping.calls, stopping.lower_is_better = 0, True


def get_config():
    return quick(
        "resnet",
        train={"steps": 6, "evaluate_every": 1 / 45, "ema_decay": 0.5},
        source={"name": f"{__name__}:own", "test_fraction": 0.5, "validation_fraction": 0.2},
        loss={"kind": "sigmoid"},
        metric={"name": stopping},
        checkpoint={"best": "stopping"},
    )
"""

Convert = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run with checkpoints of the steps 1 and 2, of which 1 is the best.

    Its source, and with it the data, was defined in a config file that no longer exists.
    """
    workdir, file = tmp_path_factory.mktemp("stopped"), tmp_path_factory.mktemp("config") / "own.py"
    file.write_text(CONFIG)
    with pytest.raises(KeyboardInterrupt):
        run.train(config.load(str(file)), workdir)
    file.unlink()
    del sys.modules["_jaxvision_config_own"]
    return workdir


@pytest.fixture
def convert(capsys: pytest.CaptureFixture) -> Convert:
    def convert(*arguments: object) -> tuple[int, str, str]:
        status = cli.main(["convert", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return convert


@pytest.mark.parametrize(("options", "step"), [((), 1), (("--step", "newest"), 2)])
def test_a_checkpoint_is_converted(
    options: tuple[str, ...], step: int, stopped: Path, tmp_path: Path, convert: Convert
) -> None:
    status, out, err = convert(stopped, tmp_path / "out", *options)
    assert status == 0, err
    assert f"test_resnet with 10 classes, step {step} of {stopped}" in out
    classifier = load_classifier(tmp_path / "out")
    assert classifier.classes == tuple("0123456789")
    # The evaluation during training logged the metrics of this model, with its averaged weights.
    lines = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if (line["split"], line["step"]) == ("validation", step))
    validation = open_source("digits", **SOURCE).split("validation")
    found = evaluate(classifier, validation, quiet=True)
    for name in ("loss", "calibration_error"):  # those of the sigmoid, which the export records
        assert found[name] == pytest.approx(logged[name], rel=1e-5)
    assert not (stopped / "export").exists()


def test_mistakes_about_checkpoints(stopped: Path, tmp_path: Path, convert: Convert) -> None:
    def refused(*arguments: object) -> str:
        status, _, err = convert(*arguments)
        assert status == 2
        assert err.count("\n") == 1
        return err

    assert "--step: got 'last', expected newest, best or the number" in refused(
        stopped, tmp_path / "x", "--step", "last"
    )
    assert "--num-classes: got 3 for a checkpoint of a run" in refused(stopped, tmp_path / "x", "--num-classes", 3)
    assert "got no checkpoint, expected the workdir" in refused(tmp_path, tmp_path / "x", "--step", "best")
    assert not (tmp_path / "x").exists()


WRONG = ({"classes": None}, {"classes": "abc"}, {"in_channels": "x"}, {"more": 1})


def test_what_the_workdir_lacks_is_named(stopped: Path, tmp_path: Path, convert: Convert) -> None:
    copy = shutil.copytree(stopped, tmp_path / "copy")
    record = json.loads((copy / "classifier.json").read_text())
    for text in (None, "{", "[]", "{}", *(json.dumps(record | wrong) for wrong in WRONG)):
        (copy / "classifier.json").unlink() if text is None else (copy / "classifier.json").write_text(text)
        status, _, err = convert(copy, tmp_path / "out")
        assert (status, err.count("\n")) == (2, 1), err
        assert err.startswith(f"error: {copy}/classifier.json: ")
        assert "Rerun the training command, which writes the file before its first step" in err
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({key: config[key] for key in ("source", "model", "train")}))
    assert "got no section" in convert(copy, tmp_path / "out")[2]
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_checkpoint_has_nothing_to_convert(tmp_path: Path, convert: Convert) -> None:
    write_config(tmp_path / "run", quick("resnet"))
    (tmp_path / "run" / "classifier.json").touch()
    status, _, err = convert(tmp_path / "run", tmp_path / "out")
    assert (status, err.count("\n")) == (2, 1)
    assert "not finished, expected one with a result. To finish it, rerun its command (python -m jaxvision.main" in err
    assert "convert" not in err


def test_what_needs_a_result_names_the_command(stopped: Path) -> None:
    with pytest.raises(UserError, match=rf"or export a checkpoint of it: jaxvision convert {stopped} FOLDER"):
        load_classifier(stopped)
    for load in (create_model, load_classifier):
        with pytest.raises(UserError, match=rf"a run that is not finished, .* --workdir {stopped}\), or export a"):
            load("test_resnet", checkpoint_path=stopped)


def test_the_workdir_of_a_finished_run_is_its_weights(tmp_path: Path, convert: Convert) -> None:
    model = create_model("test_resnet", num_classes=2, image_size=32, seed=3)
    classifier = Classifier(model, ("cat", "dog"), Preprocess(image_size=32, mean=(0.1, 0.2, 0.3)))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save_classifier(tmp_path / "run" / "export", classifier)
    weights = load_file(tmp_path / "run" / "export" / "model.safetensors")
    loaded = create_model("test_resnet", checkpoint_path=tmp_path / "run")
    np.testing.assert_array_equal(loaded.fc.kernel[...].T, weights["fc.weight"])
    by_name = load_classifier("test_resnet", checkpoint_path=str(tmp_path / "run"))
    assert (by_name.classes, by_name.preprocess) == (classifier.classes, classifier.preprocess)
    status, _, err = convert("test_resnet", tmp_path / "x.safetensors", "--checkpoint", tmp_path / "run")
    assert status == 0, err
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["fc.weight"], weights["fc.weight"])
