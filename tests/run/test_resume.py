"""A run that is started again resumes with bit-identical results, or an error says why it cannot."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support.quick import quick

from jaxvision import run
from jaxvision.data import order
from jaxvision.errors import Preempted, UserError
from jaxvision.run import program
from jaxvision.run.config import load
from jaxvision.run.loop import Patience
from jaxvision.run.workdir import write_config


def test_a_resumed_run_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"train": {"steps": 8, "evaluate_every": 0.044, "ema_decay": 0.9}, "augment": {"crop_padding": 1}}
    with jax.log_compiles():
        uninterrupted = run.train(quick("resnet", **options), tmp_path / "uninterrupted")
    compiled = [re.match(r"Compiling jit\((train_step|eval_step)\)", record.getMessage()) for record in caplog.records]
    # One of each, for eight steps and two evaluations.
    assert sorted(found[1] for found in compiled if found) == ["eval_step", "train_step"]
    assert (tmp_path / "uninterrupted" / "metrics.jsonl").read_text().count('"split": "test"') == 2

    # Stopped by SIGTERM at the fourth step, which saves, and by Ctrl-C at the third step after that, which does not.
    def start_and_interrupt(at: int, interrupt: Callable[[], None]) -> None:
        real, calls = program.make_train_step, itertools.count(1)

        def make_interrupted_step(*args: Any, **kwargs: Any) -> Callable:
            step = real(*args, **kwargs)

            def interrupted_step(state: Any, batch: Any) -> Any:
                if next(calls) == at:
                    interrupt()
                return step(state, batch)

            interrupted_step.trace = step.trace
            return interrupted_step

        with monkeypatch.context() as patched:
            patched.setattr(program, "make_train_step", make_interrupted_step)
            run.train(quick("resnet", **options), tmp_path / "parts")

    with pytest.raises(Preempted, match="stopped by SIGTERM at step 4"):
        start_and_interrupt(4, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        start_and_interrupt(3, lambda: signal.raise_signal(signal.SIGINT))
    parts = run.train(quick("resnet", **options), tmp_path / "parts")
    assert parts == uninterrupted
    a, b = ((tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("uninterrupted", "parts"))
    assert a == b
    steps = [json.loads(x)["step"] for x in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_patience_counts_across_a_restart(tmp_path: Path) -> None:
    rows = [("validation", x) for x in (0.5, 0.7, 0.7, 0.6)] + [("test", 0.9)]
    losses = (None, 2.0, None, None, 1.0)
    lines = [
        json.dumps({"step": i, "split": split, "top1": top1, "loss": loss})
        for i, ((split, top1), loss) in enumerate(zip(rows, losses, strict=True))
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    def read(workdir: Path, before: int, **options: Any) -> tuple[float | None, int]:
        patience = Patience(**options)
        patience.read(workdir, "validation", before=before)
        return patience.best, patience.waited

    assert read(tmp_path, 9) == (0.7, 2)  # an equal accuracy is no improvement
    assert read(tmp_path, 3) == (0.7, 1)  # an evaluation that is made again counts once
    assert read(tmp_path, 9, lower_is_better=True) == (0.5, 3)
    assert read(tmp_path, 9, metric="loss", lower_is_better=True) == (2.0, 2)  # null is NaN
    assert read(tmp_path, 9, metric="new") == (None, 0)
    assert read(tmp_path / "new", 9) == (None, 0)


def test_a_run_resumes_only_with_the_same_training_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may move. With more or fewer images, or in another order, each step would see others."""

    def make_images(colors: dict[str, tuple[int, int, int]], folder: Path) -> None:
        for name, color in colors.items():
            (folder / name).mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (20 + i, 24), color).save(folder / name / f"{i}.jpg")

    make_images({"red": (200, 40, 40), "blue": (40, 40, 200)}, tmp_path / "here")

    def config(where: str, **data: Any) -> ConfigDict:
        config = load("configs/folder.py:test_resnet")
        config.source.update({"data_dir": str(tmp_path / where), "validation_fraction": None})
        config.model.pretrained, config.model.image_size = False, 32
        config.data = ConfigDict({"batch_size": 8, "workers": 0, **data})
        config.train.update({"steps": 2, "evaluate_every": 1.0})
        config.mesh = ConfigDict({"data": 1})
        return config

    run.train(config("here"), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    run.train(config("there", max_corrupt=3), tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.memory_limit 2\.0 -> 0\.0"):  # decides who crops
        run.train(config("there", memory_limit=0.0), tmp_path / "run")
    before = sorted((tmp_path / "run").rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr(order, "VERSION", order.VERSION + 1)
        with pytest.raises(
            UserError, match=rf"have order {order.VERSION - 1}, expected order {order.VERSION}, .* version"
        ):
            run.train(config("there"), tmp_path / "run")
    Image.new("RGB", (20, 24)).save(tmp_path / "there" / "red" / "another.jpg")
    other = "got other training data than this run was started with"
    with pytest.raises(UserError, match=f"{other}: 20 images then and now, but other files or another order of them. "):
        run.train(config("there"), tmp_path / "run")
    for i in range(4):
        (tmp_path / "there" / "red" / f"{i}.jpg").unlink()
    with pytest.raises(UserError, match=f"{other}: 20 images then, 17 now. "):
        run.train(config("there"), tmp_path / "run")
    shutil.rmtree(tmp_path / "there")
    make_images({"red": (200, 40, 40), "navy": (40, 40, 200)}, tmp_path / "there")
    with pytest.raises(UserError, match=f"{other}: 20 images then and now, but other classes, other files or another"):
        run.train(config("there"), tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before
    shutil.rmtree(tmp_path / "there")
    make_images({"red": (200, 40, 40), "blue": (40, 40, 200)}, tmp_path / "there")
    (tmp_path / "there" / "notes.jpg").touch()  # is ignored, so the dataset is the same
    run.train(config("there"), tmp_path / "run")


def small_images(folder: Path, *classes: str, count: int = 12) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (16, 16), 40 * number + i).save(folder / name / f"{i}.png")


def on_photos(folder: Path) -> ConfigDict:
    source = {"name": "folder", "data_dir": str(folder / "photos")}
    return quick("resnet", train={"steps": 1}, model={"name": "test_resnet"}, source=source)


def test_a_run_resumes_only_with_the_same_validation_data(tmp_path: Path) -> None:
    """The best checkpoint and the patience compare metrics from before and after."""
    small_images(tmp_path / "photos" / "train", "cat", "dog")
    small_images(tmp_path / "photos" / "val", "cat", "dog", count=3)
    config = on_photos(tmp_path)
    run.train(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()  # as if it had been stopped before the end
    (tmp_path / "photos" / "val" / "cat" / "0.png").rename(tmp_path / "photos" / "val" / "dog" / "9.png")
    other = "got other validation data than this run was started with"
    with pytest.raises(
        UserError, match=f"{other}: 6 images now and other ones then, so their metrics .*checkpoint_path="
    ):
        run.train(config, tmp_path / "run")
    (tmp_path / "photos" / "val").rename(tmp_path / "photos" / "test")
    with pytest.raises(UserError, match=f"{other}: none now and other ones then"):
        run.train(config, tmp_path / "run")


def test_a_class_that_was_added_is_named(tmp_path: Path) -> None:
    """It was blamed on the config, because the head of the model has another shape."""
    small_images(tmp_path / "photos", "cat", "dog")
    config = on_photos(tmp_path)
    run.train(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    small_images(tmp_path / "photos", "emu")
    with pytest.raises(UserError, match=r"other training data .*: 2 classes then, 3 now \('emu' is new\)\. .*convert"):
        run.train(config, tmp_path / "run")
    (tmp_path / "run" / "classifier.json").unlink()  # is written again, if the weights fit
    shutil.rmtree(tmp_path / "photos" / "emu")
    run.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "classifier.json").exists()


def test_another_config_is_an_error_that_lists_the_differences(tmp_path: Path) -> None:
    write_config(tmp_path, run.complete(quick("resnet")))
    before = (tmp_path / "config.json").read_bytes()
    config = quick("resnet", optimizer={"learning_rate": 0.5})
    with pytest.raises(UserError, match=r"optimizer\.learning_rate .* -> 0\.5"):
        run.train(config, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
