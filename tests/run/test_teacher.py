"""The section `teacher` of a config: which teacher it finds, what it refuses, and a run with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from support.foreign import write
from support.paths import TESTS
from support.plans import DIGITS, digits_config
from support.quick import quick

import jaxvision
from jaxvision import run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.errors import UserError
from jaxvision.parallel.mesh import make_mesh
from jaxvision.run import program
from jaxvision.run.teacher import Teacher, find_teacher
from jaxvision.run.unfinished import load_checkpoint
from jaxvision.train.partial import parameter_counts

DIGIT_NAMES = tuple(map(str, range(10)))


def export(folder: Path, classes: tuple[str, ...] = DIGIT_NAMES, *, bias: float = 0.0) -> str:
    """Writes a small ViT with an image size and a normalization of its own; returns the folder."""
    model = jaxvision.create_model("test_vit", num_classes=len(classes), image_size=32, in_channels=1, depth=1)
    model.head.bias[...] = model.head.bias[...] + bias
    preprocess = Preprocess(image_size=32, mean=(0.3,), std=(0.2,))
    return str(save_classifier(folder, Classifier(model, classes, preprocess)))


def find(mesh: Any = None, sharding: Any = None, channels: int = 1, **section: Any) -> Teacher | None:
    config = run.complete(digits_config(teacher=section, sharding=sharding or {}))
    devices = mesh or make_mesh({"data": 1}, devices=jax.devices()[:1])
    student = Preprocess(mean=(0.5,), std=(0.5,))
    return find_teacher(config, devices, num_classes=10, channels=channels, num_images=100, student=student)


def test_no_teacher_by_default() -> None:
    assert find() is None


@pytest.mark.parametrize("key", ["name", "checkpoint_path"])
def test_a_folder_is_a_teacher(tmp_path: Path, key: str) -> None:
    folder = export(tmp_path / "export")
    teacher = find(**{key: str(tmp_path) if key == "name" else folder}, weight=0.9)
    assert teacher is not None
    assert teacher.classes == DIGIT_NAMES
    assert (teacher.distillation.kind, teacher.distillation.weight, teacher.distillation.temperature) == (
        "soft",
        0.9,
        4,
    )
    assert teacher.distillation.teacher == Preprocess(image_size=32, mean=(0.3,), std=(0.2,), crop_pct=0.875)
    loaded, expected = tiny.arrays(teacher.load()), tiny.arrays(tiny.nnx.state(load_classifier(folder).model))
    assert loaded.keys() == expected.keys()
    assert all((loaded[name] == expected[name]).all() for name in expected)


def test_a_name_with_a_weight_file_size_and_dtype(tmp_path: Path) -> None:
    """The file has a head of ten classes and three channels; the images have one."""
    model = jaxvision.create_model("test_resnet", num_classes=10)
    jaxvision.save_timm(model, tmp_path / "weights.safetensors")
    options = {"image_size": 64, "dtype": "bfloat16", "kind": "hard"}
    teacher = find(name="test_resnet", checkpoint_path=str(tmp_path / "weights.safetensors"), **options)
    assert teacher is not None
    assert (teacher.distillation.teacher.image_size, teacher.distillation.kind) == (64, "hard")
    built = tiny.nnx.merge(teacher.distillation.graph, teacher.load())
    assert (built.dtype, built.in_channels, built.num_classes) == (jnp.bfloat16, 1, 10)
    summed = np.asarray(model.conv1[0].kernel[...]).sum(2, keepdims=True)
    np.testing.assert_allclose(built.conv1[0].kernel[...], summed, rtol=1e-5, atol=1e-6)


def test_messages_about_the_weights_of_another_library(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = json.loads((TESTS / "golden" / "foreign.json").read_text(encoding="utf-8"))["torchvision-vit"]
    model = jaxvision.create_model(row["architecture"], num_classes=5, **row["options"])
    folder = save_classifier(
        tmp_path / "small", Classifier(model, tuple("abcde"), Preprocess(image_size=32, mean=(0.5, 0.5, 0.5)))
    )
    path = write(tmp_path / "w.safetensors", row["shapes"])
    with caplog.at_level("INFO", "jaxvision"):
        teacher = find(name=str(folder), checkpoint_path=str(path), kind="features", channels=3)
        assert teacher is not None
        loaded = tiny.arrays(teacher.load())
    expected = jaxvision.create_model(row["architecture"], checkpoint_path=path, **row["options"])
    assert all((value == loaded[name]).all() for name, value in tiny.arrays(tiny.nnx.state(expected)).items())
    texts = [text for text in caplog.messages if text.startswith(str(path))]
    assert len(texts) == 2, texts
    assert "has the tensor names of torchvision" in texts[0]
    assert "torchvision normalizes images by the mean (0.485, 0.456, 0.406), but the transform by (0.5, 0.5" in texts[1]
    assert "Write a folder with jaxvision convert" in texts[1]


def test_the_teacher_is_sharded_by_the_rules_of_the_student(tmp_path: Path) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 4})
    teacher = find(mesh, {"min_size": 1}, name=export(tmp_path))
    assert teacher is not None
    loaded = teacher.load()
    sharding = loaded["blocks"][0]["attn"]["qkv"]["kernel"].get_value().sharding
    assert "fsdp" in sharding.spec
    for x, shape in zip(jax.tree.leaves(loaded), jax.tree.leaves(teacher.abstract), strict=True):
        assert x.sharding == shape.sharding


def test_wrong_sections(tmp_path: Path) -> None:
    other = export(tmp_path / "other", ("cat", "dog"))
    (tmp_path / "file.safetensors").touch()
    for name in ("stopped/checkpoints", "started"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "started" / "classifier.json").touch()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weight": 0.5}, r"^config.teacher.weight: got 0.5 without a teacher. Set teacher.name, or remove"),
        ({"name": "resnet5"}, r"^teacher.name: got 'resnet5', expected a model name. Did you mean"),
        ({"name": other}, r"^config.teacher.name: got .*other, which has 2 classes, expected 10, .*kind=features"),
        ({"name": "resnet50"}, r"^config.teacher.name: got resnet50, which has 1000 classes, expected 10"),
        ({"name": other, "kind": "sofft"}, r"^teacher.kind: got 'sofft'"),
        ({"checkpoint_path": str(tmp_path / "file.safetensors")}, r"^config.teacher.name: not set, expected the name"),
        (
            {"name": str(tmp_path / "stopped")},
            r"^config.teacher.name: .*a run that is not finished, .*--workdir .*stopped\), or export a check",
        ),
        ({"name": str(tmp_path / "started")}, r"^config.teacher.name: .*a run that is not.*--workdir .*started\)\.$"),
    ]
    for section, message in cases:
        with pytest.raises(UserError, match=message):
            find(**section)
    assert find(name=other, kind="features") is not None
    config = run.complete(
        digits_config(teacher={"name": export(tmp_path / "t"), "cache": True}, augment={"mixup": 0.2})
    )
    model = jaxvision.create_model("test_vit", num_classes=10, image_size=32, in_channels=1, depth=1)
    sigmoid = Classifier(model, DIGIT_NAMES, Preprocess(image_size=32, mean=(0.3,), std=(0.2,)), "sigmoid")
    folder = str(save_classifier(tmp_path / "sigmoid", sigmoid))
    with pytest.raises(UserError, match="which was trained with sigmoids, expected a model whose probabilities"):
        find(name=folder)
    assert find(name=folder, kind="hard") is not None
    with pytest.raises(UserError, match="a folder that does not exist, expected the workdir of a finished run"):
        find(name=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"^config.teacher.cache: got True with augment.mixup"):
        program.train_program(config, make_mesh({"data": 1}, devices=jax.devices()[:1]), **DIGITS)


def test_a_plan_counts_the_teacher(tmp_path: Path) -> None:
    folder = export(tmp_path)
    options = {"device": "0.001GB", "num_classes": 10, "channels": 1, "search": False}  # too small to compile
    plans = [run.plan(digits_config(teacher=teacher), **options).plans[0] for teacher in ({}, {"name": folder})]
    parameters, _ = parameter_counts(tiny.nnx.state(load_classifier(folder).model))
    assert [plan.bytes["teacher"] for plan in plans] == [0, 4 * parameters]
    assert plans[1].start - plans[0].start >= 4 * parameters
    assert plans[0].bytes["parameters"] == plans[1].bytes["parameters"]


def test_the_projection_of_features_is_trained_and_counted(tmp_path: Path) -> None:
    config = run.complete(digits_config(teacher={"name": export(tmp_path), "kind": "features"}))
    made = program.train_program(config, make_mesh({"data": 1}, devices=jax.devices()[:1]), **DIGITS)
    names = {name.partition(".distill_projection")[0] for name in names_of(made.abstract) if "projection" in name}
    assert names == {"model", "optimizer.opt_state.0.0.mu", "optimizer.opt_state.0.0.nu"}


def names_of(state: Any) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(state)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "features"])
def test_a_run_with_a_teacher_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, kind: str
) -> None:
    folder = export(tmp_path / "teacher")
    options = {"teacher": {"name": folder, "kind": kind}, "train": {"steps": 4, "save_every": 2, "ema_decay": 0.9}}
    run.train(quick("resnet", **options), tmp_path / "whole")
    assert "  teacher     " in capsys.readouterr().out

    make, taken = program.make_train_step, []

    def make_interrupted(*args: Any, **kwargs: Any) -> Any:
        step = make(*args, **kwargs)

        def interrupted(*arguments: Any) -> Any:
            taken.append(arguments)
            if len(taken) == 4:
                raise KeyboardInterrupt
            return step(*arguments)

        interrupted.trace = step.trace
        return interrupted

    with monkeypatch.context() as patched:
        patched.setattr(program, "make_train_step", make_interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.train(quick("resnet", **options), tmp_path / "parts")
    checkpoint = max((tmp_path / "parts" / "checkpoints").iterdir())
    assert not [path for path in checkpoint.rglob("*") if "blocks" in path.name]  # of the ViT

    unfinished, step = load_checkpoint(tmp_path / "parts")  # needs no teacher
    assert step == 2
    assert not [name for name in names_of(tiny.nnx.state(unfinished.model)) if "projection" in name]

    export(tmp_path / "teacher", bias=1.0)
    with pytest.raises(UserError, match="got a teacher with other weights than this run was started with"):
        run.train(quick("resnet", **options), tmp_path / "parts")
    export(tmp_path / "teacher")
    run.train(quick("resnet", **options), tmp_path / "parts")
    a, b = (load_classifier(tmp_path / name).model for name in ("whole", "parts"))
    a, b = (tiny.arrays(tiny.nnx.state(model)) for model in (a, b))
    assert all((a[name] == b[name]).all() for name in a)
    assert not [name for name in a if "projection" in name]

    page = (tmp_path / "whole" / "report.html").read_text()
    assert f"The model was distilled from {folder} ({kind}, weight 0.5" in page
    line = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx((line["task_loss"] + line["distillation_loss"]) / 2, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "features"])
def test_cached_outputs_equal_those_of_the_step_without_augmentation(tmp_path: Path, kind: str) -> None:
    """The images of the digits arrive at the size of the teacher either way, because the student has the same size."""
    folder, lines = export(tmp_path / "teacher"), []
    for cache in (False, True):
        teacher = {"name": folder, "kind": kind, "cache": cache}
        config = quick("resnet", teacher=teacher, train={"steps": 2, "log_every": 1}, model={"image_size": 32})
        config.augment = {}
        workdir = tmp_path / str(cache)
        run.train(config, workdir)
        lines.append([json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()])
    for plain, cached in zip(*lines, strict=True):
        for key in {"loss", "distillation_loss"} & plain.keys():
            assert cached[key] == pytest.approx(plain[key], rel=2e-4, abs=1e-6), key


@pytest.mark.slow
def test_a_run_checks_the_order_of_the_classes(tmp_path: Path) -> None:
    folder = export(tmp_path / "teacher", DIGIT_NAMES[::-1])
    with pytest.raises(UserError, match="whose classes have another order than those of the data"):
        run.train(quick("resnet", teacher={"name": folder}), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}])
def test_a_mesh_trains_as_one_device(tmp_path: Path, axes: dict[str, int]) -> None:
    folder = export(tmp_path / "teacher")
    options = {"teacher": {"name": folder}, "sharding": {"min_size": 1}, "train": {"steps": 2, "log_every": 1}}
    losses = []
    for name, mesh in (("one", {"data": 1}), ("many", axes)):
        config = quick("resnet", **options)
        config.mesh = mesh
        run.train(config, tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["distillation_loss"] for line in lines if "distillation_loss" in line])
    np.testing.assert_allclose(*losses, rtol=1e-3)
