"""The metrics on disk, atomic files, and the description of the environment."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvision.report import MetricsWriter, environment, machine, read_metrics
from jaxvision.report.files import write_atomically


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Returns (tag, step, value) of TensorBoard's records: length (8 bytes), checksum (4), event, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (n,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + n])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + n :]
    return found


def test_metrics_are_written_as_json_and_as_events(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(10, "train", {"loss": np.float32(2.5), "learning_rate": 1e-3}, epoch=0.5)
        metrics.write(10, "test", {"top1": jax.numpy.asarray(0.25)}, epoch=0.5)
        assert len(read_metrics(tmp_path)) == 2  # flushed by write
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("time") > 1.6e9 for line in lines] == [True, True]
    assert lines == [
        {"step": 10, "epoch": 0.5, "split": "train", "loss": 2.5, "learning_rate": 0.001},
        {"step": 10, "epoch": 0.5, "split": "test", "top1": 0.25},
    ]
    assert events(tmp_path / "tensorboard") == [
        ("train/loss", 10, 2.5),
        ("train/learning_rate", 10, pytest.approx(1e-3)),
        ("test/top1", 10, 0.25),
    ]


def test_resuming_drops_what_is_measured_again(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in (10, 20, 30, 40):
            metrics.write(step, "train", {"loss": 1.0})
        metrics.write(20, "test", {"top1": 0.1})
        metrics.write(40, "test", {"top1": 0.2})
    with MetricsWriter(tmp_path, resume_step=20) as metrics:
        metrics.write(20, "test", {"top1": 0.9})  # evaluated again after the restore; already in the file
        for step in (30, 40):
            metrics.write(step, "train", {"loss": 2.0})
    found = [(line["split"], line["step"], line.get("loss", line.get("top1"))) for line in read_metrics(tmp_path)]
    assert found == [("train", 10, 1.0), ("train", 20, 1.0), ("test", 20, 0.1), ("train", 30, 2.0), ("train", 40, 2.0)]
    with MetricsWriter(tmp_path) as metrics:  # not resumed: a new run
        metrics.write(10, "train", {"loss": 3.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(10, 3.0)]


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe{", b"null", b"[]", b"3", b'{"step": 3}', b'{"step": "3", "split": "test"}', b'{"step": 3, "split": 5}',
     b'{"step": 3, "split": "test", "top1": "high"}', b'{"step": 3, "split": "test", "top1": [1]}'],
)  # fmt: skip
def test_a_line_of_another_form_is_skipped(tmp_path: Path, line: bytes) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(1, "train", {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with MetricsWriter(tmp_path, resume_step=5, tensorboard=False) as metrics:
        metrics.write(2, "train", {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_an_incomplete_line_is_skipped(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(1, "train", {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "spl')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    with MetricsWriter(tmp_path, resume_step=5, tensorboard=False) as metrics:
        metrics.write(2, "train", {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_nan_is_null_in_json(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(1, "train", {"loss": math.nan, "grad_norm": math.inf})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["loss"] is None
    assert line["grad_norm"] is None
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])
    assert read_metrics(tmp_path)[0]["epoch"] is None


def test_metrics_cannot_have_reserved_names(tmp_path: Path) -> None:
    with (
        MetricsWriter(tmp_path, tensorboard=False) as metrics,
        pytest.raises(ValueError, match=r"reserved names \['step'\]"),
    ):
        metrics.write(1, "train", {"step": 1.0})


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_environment_has_versions_and_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.git_revision() is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    revision = environment()["git revision"]
    assert re.fullmatch("[0-9a-f]{12}", revision)
    (tmp_path / "a").write_text("2")
    assert environment()["git revision"] == f"{revision}, with changes"
    assert environment()["jax"] == jax.__version__
    assert environment()["devices"] == f"{jax.device_count()} × {jax.devices()[0].device_kind}"
