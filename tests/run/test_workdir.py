"""The config record and the result of a workdir, and the lock."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from support.quick import quick

from jaxvision import create_model, run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.errors import UserError
from jaxvision.run.workdir import check_config, lock, read_result, write_config, write_result


def test_config_is_written_once_and_then_compared(tmp_path: Path) -> None:
    config = ConfigDict({"model": {"name": "resnet50", "image_size": (224, 224)}, "optim": {"learning_rate": 0.1}})
    assert not check_config(tmp_path / "run", config.to_dict())
    assert not (tmp_path / "run").exists()
    write_config(tmp_path / "run", config.to_dict())
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert written == {"model": {"name": "resnet50", "image_size": [224, 224]}, "optim": {"learning_rate": 0.1}}
    assert check_config(tmp_path / "run", config)  # a tuple equals the list that JSON makes of it
    changed = {"model": {"name": "resnet18", "image_size": (224, 224)}, "optim": {"learning_rate": 0.2}, "seed": 1}
    with pytest.raises(UserError) as error:
        check_config(tmp_path / "run", changed)
    assert (
        "model.name 'resnet50' -> 'resnet18'; optim.learning_rate 0.1 -> 0.2; seed (not set) -> 1. "
        "Set the values back, or choose another --workdir." in str(error.value)
    )
    assert json.loads((tmp_path / "run/config.json").read_text()) == written


def test_keys_that_may_differ(tmp_path: Path) -> None:
    write_config(tmp_path, {"seed": 1, "report": {"every": 10, "images": 4}, "reports": 1})
    new = {"seed": 1, "report": {"every": 20}, "reports": 1}
    assert check_config(tmp_path, new, may_differ=("report",))
    with pytest.raises(UserError, match="reports 1 -> 2"):
        check_config(tmp_path, {**new, "reports": 2}, may_differ=("report", "report.every"))


def test_a_run_of_a_version_with_fewer_keys_resumes(tmp_path: Path) -> None:
    write_config(tmp_path, {"train": {"steps": 1}})
    assert check_config(tmp_path, {"train": {"steps": 1, "new": None}})
    with pytest.raises(UserError, match=r"train\.new \(not set\) -> 3"):
        check_config(tmp_path, {"train": {"steps": 1, "new": 3}})


def test_config_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    for damaged, message in (
        (b"{", "got invalid JSON"),
        (b"\xff\xfe{", "got invalid JSON"),
        (b"[]", r"got \[\], expected"),
    ):
        (tmp_path / "config.json").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"config\.json: {message}"):
            check_config(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use the workdir"):
        write_config(tmp_path / "file" / "run", {})


def test_a_second_run_in_a_workdir_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(UserError, match=rf"is in use by another run \(process {os.getpid()} on .+\)"):
        run.train(quick("resnet"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use the workdir"), lock(tmp_path / "file" / "run"):
        pass


def test_a_workdir_on_a_disk_without_locks_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with lock(tmp_path), lock(tmp_path):
        pass


def test_a_damaged_result_is_none(tmp_path: Path) -> None:
    model = create_model("test_vit", num_classes=2, image_size=32, patch_size=8)
    save_classifier(tmp_path / "export", Classifier(model, ("cat", "dog"), Preprocess(image_size=32)))
    for name in ("report.html", "mistakes.csv", "metrics.jsonl"):
        (tmp_path / name).write_text("text")
    write_config(tmp_path, {"seed": 1})
    write_result(tmp_path, step=1, split="test", metrics={"top1": 0.5})
    assert read_result(tmp_path, {"seed": 1}) == {"step": 1, "split": "test", "metrics": {"top1": 0.5}}
    another_type, text = (
        b'{"step": "x", "split": "test", "metrics": {}}',
        b'{"step": 1, "split": "", "metrics": {"a": "b"}}',
    )
    endless = b'{"step": Infinity, "split": "test", "metrics": {}}'
    for damaged in (b"", b"{", b"[]", b'{"step": 1}', another_type, text, endless, b"\xff"):
        (tmp_path / "result.json").write_bytes(damaged)
        assert read_result(tmp_path, {"seed": 1}) is None
