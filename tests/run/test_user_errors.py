"""What users get wrong: one line, status 2, and nothing half-written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from support.images import class_folders
from support.paths import ROOT
from support.quick import refused

from jaxvision import main as command
from jaxvision import report, run
from jaxvision.create import create_model
from jaxvision.errors import UserError, disk_errors_as_user_errors
from jaxvision.report.files import write_atomically
from jaxvision.run.not_finite import NonFiniteSteps
from jaxvision.weights.timm import save_timm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimizer.learning_rte=1"], "Did you mean optimizer.learning_rate"),
        (["--config.optimzer.learning_rate=1"], "Did you mean optimizer.learning_rate"),
        (["--config.train.epochs=many"], "got 'many', expected a number"),
        (
            ["--config.model.name=resnet51"],
            "config.model.name: got 'resnet51', expected a model name. Did you",
        ),
        (["--config.model.name=resnet50.a9_in1k"], "Valid names: 'a1_in1k'"),
        (["--config.source.name=digit"], "Did you mean 'digits'"),
        (["--config.model.image_size=17"], "expected a multiple of the patch size 4"),
        (["--config.model.image_size=0"], "image_size: got 0, expected"),
        (["--config.model.patch_sise=4"], "Did you mean model.patch_size"),
        (["--config.optimizer.name=adamv"], "Did you mean 'adamw'"),
        (["--config.schedule.name=cosin"], "Did you mean 'cosine'"),
        (["--config.augment.crop=resize"], "resized"),
        (["--config.model.checkpoint_path=nowhere.safetensors"], "nowhere.safetensors"),
        (["--config.data.batch_size=30"], "config.data.batch_size: got 30, expected a multiple of 8 devices"),
        (["--config.data.eval_batch_size=30"], "config.data.eval_batch_size: got 30, expected a multiple of 8 devices"),
        (["--config.mesh.model=2"], "got 'model', expected an axis. Valid names: 'data', 'fsdp', 'tensor'"),
        (["--config.train.log_every=0"], "config.train.log_every: got 0, expected 1 or more"),
        (["--config.train.steps=-3"], "config.train.steps: got -3, expected 1 or more"),
        (["--config.train.epochs=0"], "config.train.epochs: got 0.0, expected a number above 0"),
        (["--config.train.ema_decay=1.5"], "config.train.ema_decay: got 1.5, expected a number between 0 and 1"),
        (["--config.seed=-1"], "config.seed: got -1, expected a number from 0"),
        (["--config.data.eval_batch_size=-8"], "config.data.eval_batch_size: got -8, expected 1 or more"),
        (["--config.optimizer.learning_rate=0"], "config.optimizer.learning_rate: got 0.0, expected a number above 0"),
        (["--config.optimizer.learning_rate=None"], "config.optimizer.learning_rate: not set"),
        (["--config.optimizer.weight_decay=-0.1"], "config.optimizer.weight_decay: got -0.1, expected 0 or more"),
        (["--config.data.workers=-1"], "config.data.workers: got -1, expected 0 or more"),
        (["--config.data.batch_size=0"], "config.data.batch_size: got 0, expected 1 or more"),
        (["--config.preprocess.mean=(0.5,)", "--config.preprocess.std=(0.0,)"], "above 0"),
        (["--config.checkpoint.best=top2"], "Did you mean 'top5' or 'top1'"),
        (["--config.model.freeze=layer1,layer2"], "layer1"),
        (["--confg=x"], "unknown argument '--confg'"),
        (["--workdir=gs://bucket/run"], "Mount the bucket"),
        (["--workdir="], "--workdir: got an empty path, expected one such as runs/mine"),
        (["--workdir=" + os.fsdecode(b"caf\xe9")], r"workdir: got caf\xe9, expected a name in UTF-8"),
    ],
)
def test_mistakes_end_in_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, arguments: list[str], message: str
) -> None:
    workdir = tmp_path / "run"
    error = refused(capsys, "--config", "configs/quickstart.py:vit", "--workdir", str(workdir), *arguments)
    assert message in error
    assert not workdir.exists() or not any(workdir.iterdir()), "something was left behind"


def test_no_config_or_a_misspelled_one(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert "configs/quickstart.py" in refused(capsys)
    assert "Did you mean configs/quickstart.py" in refused(capsys, "--config", "configs/quikstart.py")
    assert "expected one of vit" in refused(capsys, "--config", "configs/quickstart.py:vti")
    assert "expected a Python file with get_config()" in refused(capsys, "--config", str(ROOT / "README.md"))
    empty = tmp_path / "empty.py"
    empty.touch()
    assert f"{empty}: no function get_config()" in refused(capsys, "--config", str(empty))


def test_a_misspelled_key_in_a_config_file(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    text = (ROOT / "configs" / "quickstart.py").read_text()
    for old, new, message in [
        ('"weight_decay"', '"weight_decy"', "Did you mean optimizer.weight_decay"),
        ("config.schedule =", "config.schedul =", "Did you mean 'schedule'"),
    ]:
        (tmp_path / "mine.py").write_text(text.replace(old, new))
        assert message in refused(capsys, "--config", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "run"))
    (tmp_path / "mine.py").write_text("def get_config(:\n")
    assert "SyntaxError" in refused(capsys, "--config", str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"fdsp": 8}, "config.mesh: got 'fdsp', expected an axis. Did you mean 'fsdp'"),
        ({"data": 2.5}, "config.mesh.data: got 2.5, expected an integer"),
        ({}, "config.mesh: got {}, expected axes and their sizes"),
        (3, "config.mesh: got 3, expected axes and their sizes"),
    ],
)
def test_invalid_meshes(axes: Any, message: str) -> None:
    config = ConfigDict({"source": {"name": "digits"}, "model": {"name": "test_resnet"}, "mesh": axes})
    with pytest.raises(UserError, match=re.escape(message)):
        run.complete(config)


def test_weights_of_another_architecture(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    save_timm(create_model("test_vit", num_classes=10), tmp_path / "vit.safetensors")
    error = refused(
        capsys,
        "--config=configs/quickstart.py:resnet",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.checkpoint_path={tmp_path / 'vit.safetensors'}",
    )
    for word in ("missing", "unexpected", "test_resnet", "blocks.0.", "another architecture"):
        assert word in error


def test_truncated_weights(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_timm(create_model("test_resnet", num_classes=10), file)
    file.write_bytes(file.read_bytes()[:1000])
    error = refused(
        capsys,
        "--config=configs/quickstart.py:resnet",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.checkpoint_path={file}",
    )
    assert str(file) in error


def test_without_network_the_error_names_the_alternatives(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    error = refused(
        capsys,
        "--config=configs/quickstart.py:resnet",
        f"--workdir={tmp_path / 'run'}",
        "--config.model.pretrained=True",
        "--config.model.name=resnet18.a1_in1k",
    )
    assert "checkpoint_path" in error
    assert "pretrained=False" in error


@pytest.mark.parametrize("saved", [(), (8,), (8, 16)])
def test_ctrl_c_prints_what_is_saved(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: tuple[int, ...]
) -> None:
    for step in saved:
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "checksums.json").touch()
    (tmp_path / "checkpoints" / "24.orbax-checkpoint-tmp").mkdir(parents=True)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    assert command.main(["--config", "configs/quickstart.py:vit", "--workdir", str(tmp_path)]) == 130
    resumes = f"resumes from the checkpoint of step {saved[-1]}" if saved else "No checkpoint was saved yet"
    assert resumes in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("metrics.jsonl", report.MetricsWriter),
        ("report.html", lambda folder: write_atomically(folder / "report.html", "")),
    ],
)
def test_a_folder_in_the_place_of_a_file_of_the_workdir(name: str, write: Callable, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    message = f"{tmp_path / name}: Is a directory. Remove it, and run the same command again."
    with pytest.raises(UserError, match=re.escape(message)), disk_errors_as_user_errors(tmp_path):
        write(tmp_path)


def test_damaged_lines_of_steps_that_were_not_finite(tmp_path: Path) -> None:
    good = b'{"step": 2, "loss": "nan"}\n'
    (tmp_path / "not_finite.jsonl").write_bytes(b'\xff\xfe\nnull\n3\n{"step": "x"}\n' + good + b'{"step": 1')
    NonFiniteSteps(tmp_path, resume_step=5, skip=True, image_name=str, log=print)
    assert (tmp_path / "not_finite.jsonl").read_bytes() == good


@pytest.mark.parametrize("is_started", [False, True])
def test_a_workdir_in_the_folder_of_the_images(
    is_started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Also one of an earlier version: it is not called a class without images, to be removed."""
    monkeypatch.chdir(tmp_path)
    photos = class_folders(Path("photos"), ["cat", "dog"])
    if is_started:
        (photos / "run" / "checkpoints").mkdir(parents=True)
    flags = ["--config.source.data_dir=photos", "--config.mesh.data=1", "--workdir=photos/run"]
    err = refused(capsys, f"--config={ROOT}/configs/folder.py:test_resnet", *flags)
    assert "output: got photos/run, which would be read as a class of photos, expected a folder outside of" in err
    assert (photos / "run").exists() == is_started
