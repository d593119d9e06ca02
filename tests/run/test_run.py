"""A config becomes a result: what a run leaves behind, and what it computes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file
from support.damage import cut, largest_file
from support.quick import quick, refused, start

from jaxvision import run
from jaxvision.checkpoint import Checkpoints, ReadInOneProcessError, saved_steps
from jaxvision.classifier import load_classifier
from jaxvision.errors import UserError
from jaxvision.eval.evaluate import evaluate
from jaxvision.run.config import complete, load
from jaxvision.run.workdir import read_result

FINISHED = quick("resnet", train={"steps": 45, "evaluate_every": 1.0}, data={"batch_size": 64})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run that has learned something."""
    workdir = tmp_path_factory.mktemp("finished")
    result = run.train(FINISHED, workdir)
    # Far above the 10 % of chance, whatever the platform's rounding.
    assert result["top1"] > 0.5
    assert result["count"] == 359
    return workdir


def test_a_run_writes_all_its_files(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} == {
        "config.json", "checkpoints", "metrics.jsonl", "tensorboard", "report.html", "mistakes.csv", "export",
        "result.json", "classifier.json", ".lock", ".saved",
    }  # fmt: skip
    page = (finished / "report.html").read_text()
    assert "test_resnet" in page
    assert "No explanations: at 32 pixels the model's last feature map is only 1 x 1." in page
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "test"} == {line["split"] for line in lines}
    assert {"loss", "grad_norm", "learning_rate", "accuracy", "images_per_second"} <= set(lines[0])


def test_a_finished_run_answers_at_once(finished: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    workdir = shutil.copytree(finished, tmp_path / "copy")
    files = [workdir / name for name in ("report.html", "mistakes.csv", "export/model.safetensors", "config.json")]
    times = [file.stat().st_mtime_ns for file in files]
    result = run.train(FINISHED, workdir)
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "this run is finished" in out
    assert all(name in out for name in ("report.html", "mistakes.csv", "export", "metrics.jsonl"))
    assert f"top-1 {result['top1']:.2%}".replace("%", " %") in out
    assert [file.stat().st_mtime_ns for file in files] == times

    def is_done_again(**data: int) -> bool:
        config = FINISHED.copy_and_resolve_references()
        config.data.update(data)
        assert run.train(config, workdir) == pytest.approx(result)
        return "no step is left to train" in capsys.readouterr().out

    assert is_done_again(eval_batch_size=32)  # a key that may change
    assert not is_done_again(eval_batch_size=32)
    intact = load_file(workdir / "export" / "model.safetensors")
    cut(workdir / "export" / "model.safetensors")
    assert is_done_again(eval_batch_size=32)
    assert load_file(workdir / "export" / "model.safetensors").keys() == intact.keys()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda export: None, None),
        (lambda export: cut(export / "model.safetensors"), "is truncated or not a safetensors file"),
        (lambda export: (export / "model.safetensors").unlink(), "no such weight file"),
        (lambda export: (export / "config.json").unlink(), "config.json: cannot be read (No such file or directory)"),
        (lambda export: cut(export / "config.json"), "config.json: got invalid JSON"),
        (lambda export: (export / "config.json").write_bytes(b""), "config.json: got invalid JSON"),
        (lambda export: (export.parent / "report.html").unlink(), "report.html"),
        (lambda export: shutil.rmtree(export), "missing or empty: "),
        (lambda export: (export.parent / "mistakes.csv").write_text(""), "mistakes.csv"),
    ],
)
def test_a_run_whose_result_is_damaged_is_not_finished(damage, message, finished: Path, tmp_path: Path) -> None:
    workdir, logged = shutil.copytree(finished, tmp_path / "copy"), []
    damage(workdir / "export")
    assert (read_result(workdir, complete(FINISHED), log=logged.append) is None) == bool(message)
    if message:
        assert message in logged[0]
        assert logged[0].startswith("the result of this run is incomplete, so it is evaluated and exported again: ")


def test_mistakes_are_sorted_by_confidence(finished: Path) -> None:
    with (finished / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = [json.loads(x) for x in (finished / "metrics.jsonl").read_text().splitlines() if '"test"' in x][-1]
    assert len(rows) == round(359 * (1 - last["top1"])) > 0
    assert list(rows[0]) == ["image", "true", "predicted", "confidence"]
    assert all(row["true"] != row["predicted"] for row in rows)
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)


def test_classes_are_compared_by_name(finished: Path, capsys: pytest.CaptureFixture) -> None:
    classifier = load_classifier(finished)
    backwards = replace(classifier, classes=classifier.classes[::-1])
    with pytest.raises(UserError, match="got the model's classes in another order: 0 is '0' in the data, '9'"):
        evaluate(backwards, "digits", quiet=True)
    evaluate(replace(classifier, classes=tuple(f"digit {i}" for i in range(10))), "digits")
    assert "their names differ: 0 is '0' in the data, 'digit 0' in the model" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_exported_model_is_the_one_that_was_evaluated(finished: Path) -> None:
    classifier = load_classifier(finished)
    assert classifier.classes == tuple(str(i) for i in range(10))
    last = [json.loads(x) for x in (finished / "metrics.jsonl").read_text().splitlines() if '"test"' in x][-1]
    again = evaluate(classifier, "digits", quiet=True)
    assert again["top1"] == last["top1"]
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.timm
def test_timm_reads_the_export(finished: Path) -> None:
    import torch
    from support.reference import import_timm

    model = import_timm().create_model(f"local-dir:{finished / 'export'}", pretrained=True).eval()
    classifier = load_classifier(finished)
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 1)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(classifier.model(images), theirs, atol=1e-4 * np.abs(theirs).max())


def test_an_efficientnet_runs(tmp_path: Path) -> None:  # the other tests train a ResNet and a ViT
    result = run.train(quick("efficientnet"), tmp_path)
    assert np.isfinite(result["loss"])
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_validation_data_stop_early_and_choose_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 4), ("test", 4)):
        for label, color in enumerate([(200, 30, 30), (30, 30, 200)]):
            folder = images / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                noise = rng.integers(0, 50, (40, 48, 3)) + np.array(color)
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    config = load("configs/folder.py:test_resnet")
    config.source.data_dir = str(images)
    config.mesh = ConfigDict({"data": 1})
    config.data.update({"batch_size": 8, "workers": 0})
    config.model.update({"pretrained": False, "image_size": 32})
    config.train.update({"epochs": 30.0, "patience": 3})
    config.optimizer.update({"learning_rate": 5e-3, "layer_decay": None})
    result = run.train(config, tmp_path / "run")
    out = " ".join(capsys.readouterr().out.split())
    assert "the best checkpoint is chosen by 8 validation images, so one image is 12.5% of top1." in out
    assert "images 8" in out  # of the test part
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    watched = [line["top1"] for line in lines if line["split"] == "validation"]
    assert len(watched) < 30, "it never stopped early"
    assert result["count"] == 8  # the test part, once
    assert result["top1"] == 1.0  # red and blue are easy to tell apart

    # Without test data the report says how the result was measured.
    chosen = "The checkpoint was chosen by its top1 on these images"
    assert chosen not in (tmp_path / "run" / "report.html").read_text()
    (images / "test").rename(tmp_path / "unused")
    shorter = ConfigDict(config.to_dict() | {"train": {"steps": 3}})
    run.train(shorter, tmp_path / "without")
    assert chosen in (tmp_path / "without" / "report.html").read_text()
    (tmp_path / "unused").rename(images / "test")

    # Evaluate and export again: the last model is exported if the best, an earlier one, is damaged.
    best = load_file(tmp_path / "run" / "export" / "model.safetensors")
    first, *_, newest = saved_steps(tmp_path / "run")
    for exports in (first, newest):
        capsys.readouterr()
        (tmp_path / "run" / "result.json").unlink()
        run.train(config, tmp_path / "run")
        assert f"exporting the model of step {exports}" in capsys.readouterr().out
        found = load_file(tmp_path / "run" / "export" / "model.safetensors")
        assert all(np.array_equal(found[name], best[name]) for name in best) == (exports == first)
        cut(largest_file(tmp_path / "run" / "checkpoints" / str(first) / "state"))

    # If only one of several processes cannot read the best, it stops, because the others export it.
    restore = Checkpoints.restore

    def fail_for_best(self, *args, step="newest", **options):
        if step == "best":
            raise ReadInOneProcessError("checkpoints/1: cannot be read by this process")
        return restore(self, *args, step=step, **options)

    monkeypatch.setattr(Checkpoints, "restore", fail_for_best)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(ReadInOneProcessError):
        run.train(config, tmp_path / "run")


def test_lora_trains_on_eight_devices_and_exports_a_plain_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = run.train(
        quick("vit", lora={"rank": 4}, mesh={"data": 8}, train={"steps": 2}, model={"depth": 2}), tmp_path
    )
    assert np.isfinite(result["loss"])
    assert result["count"] == 359
    text = capsys.readouterr().out
    assert "warning: config.mesh" not in text
    held, whole = re.search(r"mesh +data=8; ([\d.]+) of ([\d.]+) MiB of state on each device", text).groups()
    assert float(held) == float(whole) > 0
    model = load_classifier(tmp_path).model
    assert not any("lora" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(model))


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = run.train(quick("resnet"), tmp_path / "one")
    assert "warning: config.mesh uses 1 of 8 devices" in capsys.readouterr().out
    eight = run.train(quick("resnet", mesh={"data": 8}), tmp_path / "eight")
    text = capsys.readouterr().out
    assert "warning: config.mesh" not in text
    held, whole = re.search(r"mesh +data=8; ([\d.]+) of ([\d.]+) MiB of state on each device", text).groups()
    assert float(held) == float(whole) > 4
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert eight["count"] == one["count"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    config = quick("resnet", train={"steps": 40, "evaluate_every": 0.1, "log_every": 1})
    config.optimizer.update({"name": "sgd", "learning_rate": 1e38, "weight_decay": 0.0})
    config.schedule.update({"name": "constant", "warmup_epochs": 0.2})
    with pytest.raises(UserError, match=r"step \d+: "):
        run.train(config, tmp_path)
    assert not (tmp_path / "export").exists()


def test_empty_class_folders_damaged_images_and_names_that_are_not_utf8(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for label in range(2):
        (images / f"class{label}").mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(rng.integers(0, 255, (40 + i, 48, 3), np.uint8))
            image.save(images / f"class{label}" / os.fsdecode(b"caf\xe9%d.jpg" % i))
    arguments = [
        "--config=configs/folder.py:test_resnet",
        f"--workdir={tmp_path / 'run'}",
        f"--config.source.data_dir={images}",
        "--config.model.pretrained=False",
        "--config.model.image_size=32",
        "--config.data.batch_size=8",
        "--config.data.workers=0",
        "--config.mesh.data=1",
        "--config.train.steps=5",
    ]
    (images / "empty").mkdir()
    assert "empty: got no images" in refused(capsys, *arguments)
    shutil.rmtree(images / "empty")

    (images / "single").mkdir()
    shutil.copy(images / "class1" / os.fsdecode(b"caf\xe91.jpg"), images / "single")
    bad, shown = images / "class1" / os.fsdecode(b"caf\xe93.jpg"), f"{images}/class1/caf\\xe93.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    status, out, err = start(capsys, *arguments)
    assert status == 0, err
    assert shown in re.sub(r"\s+", "", out)
    assert "warning: test data: 1 of 3 classes has no image: 'single'" in out
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "damaged" in page
    assert shown in page
    for rerun in (False, True):
        if rerun:
            assert start(capsys, *arguments)[0] == 0
        assert r"/caf\xe9" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        with (tmp_path / "run" / "mistakes.csv").open(newline="", encoding="utf-8") as file:
            mistakes = [row["image"] for row in csv.DictReader(file)]
        assert mistakes
        assert all(re.fullmatch(r".*/class\d/caf\\xe9\d\.jpg", name) for name in mistakes)

    shutil.rmtree(tmp_path / "run")
    error = refused(capsys, *arguments, "--config.data.max_corrupt=0")
    assert shown in error


def test_batch_norm_groups_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_norm_group: got 3, which does not divide the 16 images"):
        run.train(quick("resnet", train={"batch_norm_group": 3}), tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.batch_norm_group: got 4, but the model has no BatchNorm\. Set it to"):
        run.train(quick("vit", train={"batch_norm_group": 4}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
