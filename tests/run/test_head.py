"""Probe, then fine-tune: the head that a run starts with, and the choice between the two."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.quick import quick
from threadpoolctl import threadpool_limits

from jaxvision import load_classifier, run
from jaxvision.data import ArraySource, Splits, open_dataset, open_source
from jaxvision.errors import UserError
from jaxvision.features import extract
from jaxvision.run import head
from jaxvision.run.loop import TrainingLoop

#: An evaluation after each step.
OFTEN = {"head_init": "probe", "steps": 2, "evaluate_every": 1 / 90}
#: Of AdamW, so that each step changes each weight by about 1: nothing of the model is left.
DESTRUCTIVE = {"learning_rate": 1.0, "weight_decay": 0.0}


def probed(**sections: dict[str, Any]) -> ConfigDict:
    """Returns the config of a run on digits that starts with a probe."""
    options = {"source": {"validation_fraction": 0.1}, "schedule": {"warmup_epochs": None}, **sections}
    return quick("resnet", **options | {"train": {**OFTEN, **sections.get("train", {})}})


def evaluations(workdir: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["split"] == "validation"}


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "export" / "model.safetensors")


@pytest.fixture(scope="module")
def destroyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run whose training destroys the model."""
    workdir = tmp_path_factory.mktemp("destroyed")
    run.train(probed(optimizer=DESTRUCTIVE), workdir)
    return workdir


def test_the_head_is_that_of_scikit_learn(destroyed: Path) -> None:
    """The model of step 0 is exported, whose head is the logistic regression on the features of the training images."""
    classifier = load_classifier(destroyed)
    images = open_dataset(open_source("digits", validation_fraction=0.1).train)
    features = extract(classifier, images, batch_size=64)
    fc = classifier.model.fc
    found = softmax(features.values @ np.asarray(fc.kernel[...]) + np.asarray(fc.bias[...]), axis=1)
    errors = []
    with threadpool_limits(1):
        for regularization in 10.0 ** np.arange(-4, -1, 0.5):  # one of which the cross-validation has chosen
            regression = LogisticRegression(C=1 / (len(images) * regularization), max_iter=1000)
            reference = make_pipeline(StandardScaler(), regression).fit(features.values, features.label)
            errors.append(np.abs(reference.predict_proba(features.values) - found).max())
    assert sorted(errors)[0] < 0.02 < 0.1 < sorted(errors)[1]


def test_a_probe_that_training_destroys_is_exported(destroyed: Path) -> None:
    top1 = {step: line["top1"] for step, line in evaluations(destroyed).items()}
    assert list(top1) == [0, 1, 2]
    assert top1[0] > 0.8 > 0.5 > top1[2]
    result = json.loads((destroyed / "result.json").read_text())
    assert (result["step"], result["split"]) == (0, "test")
    assert result["metrics"]["top1"] > 0.8
    page = (destroyed / "report.html").read_text()
    assert f"fine-tuning did not improve on the probe (step 0, {100 * top1[0]:.2f} % top1): the probe is exp" in page


@pytest.mark.slow
def test_a_probe_that_training_improves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A dataset above the limit is probed in part, 20 images for each class, and the head then trains on all of it."""
    monkeypatch.setattr(head, "LARGEST_FIT", 0)
    config = probed(
        model={"freeze_backbone": True},
        optimizer={"learning_rate": 0.6, "betas": (0.9, 0.95), "weight_decay": 0.0},
        augment={"crop_padding": 0},
        loss={"label_smoothing": 0.0},
        checkpoint={"best": "loss"},
        train={"steps": 320, "evaluate_every": 4.0},
    )
    run.train(config, tmp_path)
    out = capsys.readouterr().out
    found = re.search(r"probing: features of (\d+) of 1,295 training images", out)
    assert found
    assert 195 <= int(found[1]) <= 205
    values = {step: line["loss"] for step, line in evaluations(tmp_path).items()}
    best = min(values, key=values.__getitem__)
    assert best > 0
    assert f"fine-tuning improved on the probe (step 0): loss {values[0]:.4f} → {values[best]:.4f}" in out


def test_a_sample_has_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one with a single image, whose weights would otherwise start at 0."""
    digits = open_source("digits").train
    zeros, ones, twos = (np.flatnonzero(digits.labels == label) for label in range(3))
    rows = np.concatenate([zeros[:40], twos[:1], ones[:40]])
    part = ArraySource(digits.images[rows], digits.labels[rows], classes=["0", "1", "2"], name="mine")
    source = types.ModuleType("rare")
    source.splits = lambda: Splits(train=part, test=part)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rare", source)
    monkeypatch.setattr(head, "LARGEST_FIT", 0)
    monkeypatch.setattr(head, "LEAST_PER_CLASS", 5)
    config = probed(optimizer={"learning_rate": 1e-9}, train={"steps": 1, "evaluate_every": 1.0})
    config.source = ConfigDict({"name": "rare:splits"})
    run.train(config, tmp_path)
    kernel = weights(tmp_path)["fc.weight"]
    assert np.abs(kernel[2]).max() > 0.1 * np.abs(kernel[1]).max()


def test_an_interrupted_run_resumes_without_another_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Whether it is interrupted before or after it has evaluated the probe."""

    def interrupted(self: TrainingLoop) -> None:
        raise KeyboardInterrupt

    config = probed(checkpoint={"keep": 9})
    config.checkpoint.best = None
    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.train(config, tmp_path)
    assert "probing" in capsys.readouterr().out
    run.train(config, tmp_path)
    whole = weights(tmp_path)
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / "checkpoints" / step)
    (tmp_path / "result.json").unlink()
    run.train(config, tmp_path)
    assert "probing" not in capsys.readouterr().out
    assert list(evaluations(tmp_path)) == [0, 1, 2]
    for name, value in weights(tmp_path).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


@pytest.mark.slow
def test_on_eight_devices_with_an_average_it_is_the_same_head(destroyed: Path, tmp_path: Path) -> None:
    """The model is split over the devices, and the average starts with the probe as well."""
    config = probed(optimizer=DESTRUCTIVE, train={"ema_decay": 0.9, "ema_warmup": False})
    config.mesh = ConfigDict({"data": 2, "fsdp": 4})
    run.train(config, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 0
    # The features of random weights hardly vary, so that rounding changes the head, but not what it predicts.
    first = [evaluations(workdir)[0] for workdir in (destroyed, tmp_path)]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=5e-3)
    assert first[1]["top1"] == pytest.approx(first[0]["top1"], abs=0.02)
    one = weights(destroyed)
    for name, value in weights(tmp_path).items():
        if not name.startswith("fc."):
            np.testing.assert_allclose(value, one[name], rtol=1e-6, err_msg=name)


def test_a_frozen_backbone_stays_and_has_the_same_probe(destroyed: Path, tmp_path: Path) -> None:
    config = probed(model={"freeze_backbone": True}, optimizer={"learning_rate": 1e-3})
    config.checkpoint = ConfigDict({"best": None})
    run.train(config, tmp_path)
    assert evaluations(tmp_path)[0]["loss"] == pytest.approx(evaluations(destroyed)[0]["loss"], rel=1e-4)
    one = weights(destroyed)
    for name, value in weights(tmp_path).items():
        if name.startswith("fc."):
            assert np.abs(value - one[name]).max() > 0, f"{name} did not train"
        else:
            np.testing.assert_array_equal(value, one[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"lora": {"rank": 2}}, {"model": {"distilled": True}}])
def test_adapters_and_two_heads(keys: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    config = quick("vit", **keys, source={"validation_fraction": 0.1}, train=OFTEN)
    run.train(config, tmp_path)
    assert evaluations(tmp_path)[0]["top1"] > 0.6


def test_too_many_classes_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxvision.features.probe.MOST", 12_000)
    message = r"config\.train\.head_init: got 1,295 images and 10 classes, .* Set --config\.train\.head_init=None\."
    with pytest.raises(UserError, match=message):
        run.train(probed(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": {"head_init": "prob"}}, r"config\.train\.head_init: got 'prob', expected 'probe' or None"),
        (
            {"loss": {"kind": "sigmoid"}},
            r"got 'probe' with the loss 'sigmoid', expected a softmax loss.*head_init=None",
        ),
    ],
)
def test_errors(keys: dict[str, dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run.train(probed(**keys), tmp_path / "run")
    assert not (tmp_path / "run").exists()
