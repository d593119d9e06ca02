"""The command `jaxvision`: what it prints and writes, and its error messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from support.reference import import_timm

from jaxvision import cli, main
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.weights.timm import save_timm, timm_name, weights

CLASSES = ("cat", "dog", "horse")


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export folder of a finished run."""
    options = {"patch_size": 8} if "vit" in request.param else {}
    model = create_model(request.param, num_classes=3, image_size=32, **options)
    folder = tmp_path_factory.mktemp(request.param)
    return save_classifier(folder, Classifier(model, CLASSES, Preprocess(image_size=32, crop_pct=1.0)))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three images of each class."""
    rng = np.random.default_rng(0)
    for label in CLASSES:
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (40, 50 + i, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in arguments])
    return (status, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def test_convert_does_not_write_to_the_workdir_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert cli.main(["convert", "test_resnet", str(tmp_path)]) == 2
    assert "is the workdir of a run, whose config.json would be overwritten" in capsys.readouterr().err


def test_list_prints_a_table_or_json(capsys: pytest.CaptureFixture) -> None:
    head, *lines = run(capsys, "list", "resnet1?[12]", "--family", "resnet")[1].splitlines()
    assert head.split() == ["name", "params", "M", "MACs", "G", "size", "top-1", "top-5", "license"]
    assert [line.split()[0] for line in lines] == ["resnet101", "resnet152"]
    head, line = run(capsys, "list", "resnet50.tv_in1k", "--pretrained")[1].splitlines()
    assert line.split() == ["resnet50.tv_in1k", "25.56", "4.11", "224", "76.156", "92.866", "bsd-3-clause"]
    assert head.index("license") == line.index("bsd-3-clause")

    arguments = ["--family", "vit", "--max-params", "30M", "--sort", "top1", "--pretrained"]
    rows = json.loads(run(capsys, "list", *arguments, "--json")[1])
    assert all(row["parameters"] <= 30e6 for row in rows)
    top1 = [row["top1"] for row in rows if row["top1"]]
    assert len(top1) > 5
    assert top1 == sorted(top1, reverse=True)
    assert [line.split()[0] for line in run(capsys, "list", *arguments)[1].splitlines()[1:]] == [
        row["name"] for row in rows
    ]
    (row,) = json.loads(run(capsys, "list", "resnet50", "--json")[1])
    assert row == {
        "name": "resnet50",
        "parameters": 25557032,
        "multiply_adds": 6800000000,
        "image_size": 288,
        "top1": 81.24,
        "top5": 95.112,
        "license": "apache-2.0",
        "weights": "resnet50.a1_in1k",
        "installed": False,
    }
    assert run(capsys, "list", "vit_base_patch32_384", "--license", "apache*")[0] == 0
    assert "no model matches" in refused(capsys, "list", "alexnet*")
    assert "no model matches" in refused(capsys, "list", "resnet50", "--max-params", "1M")
    assert "max_params: got" in refused(capsys, "list", "--max-params", "small")
    assert "sort: got 'speed', expected one of" in refused(capsys, "list", "--sort", "speed")
    assert "family: got 'convnext', expected one of" in refused(capsys, "list", "--family", "convnext")
    assert "license: got 'gpl', expected a license" in refused(capsys, "list", "--license", "gpl")


def test_info_counts_parameters_and_multiply_adds(capsys: pytest.CaptureFixture) -> None:
    text = run(capsys, "info", "resnet50")[1]
    assert "25.56 M" in text  # as He et al. and timm count ResNet-50
    assert "4.11 G" in text
    assert json.loads(run(capsys, "info", "resnet50", "--json")[1])["total"]["parameters"] == 25_557_032
    assert "Did you mean 'resnet50'" in refused(capsys, "info", "resnet5O")


def test_predict_runs_the_model_on_the_transformed_image(
    capsys: pytest.CaptureFixture, export: Path, images: Path
) -> None:
    file = images / "cat" / "0.png"
    status, out, _ = run(capsys, "predict", "-m", export, file, images / "dog", "--json", "--top", 2)
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["image"]).parent.name for line in lines] == ["cat", "dog", "dog", "dog"]
    # By hand: resize the shorter side, 40, to 32, crop the center, normalize with ImageNet's mean and std.
    image = Image.open(file).resize((round(50 * 32 / 40), 32), Image.Resampling.BICUBIC).crop((4, 0, 36, 32))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalized = ((np.asarray(image) / 255 - mean) / std)[None].astype("f4")
    logits = np.asarray(jax.jit(lambda model, images: model(images))(load_classifier(export).model, normalized))[0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert [row["index"] for row in lines[0]["predictions"]] == list(np.argsort(-probabilities)[:2])
    assert lines[0]["predictions"][0]["probability"] == pytest.approx(probabilities.max(), abs=1e-5)
    assert lines[0]["predictions"][0]["label"] == CLASSES[probabilities.argmax()]
    assert "%" in run(capsys, "predict", "-m", export, file)[1]


def test_a_model_that_was_trained_with_the_sigmoid_loss(
    capsys: pytest.CaptureFixture, export: Path, images: Path, tmp_path: Path
) -> None:
    """Each class has a probability of its own, also after the folder is converted."""
    classifier = load_classifier(export)
    save_classifier(tmp_path / "sigmoid", replace(classifier, probabilities="sigmoid"))
    assert run(capsys, "convert", tmp_path / "sigmoid", tmp_path / "again")[0] == 0
    file = images / "cat" / "0.png"
    logits = np.asarray(jax.jit(lambda model, x: model(x))(classifier.model, classifier.images(file)))[0]
    expected = dict(zip(CLASSES, 1 / (1 + np.exp(-logits)), strict=True))
    assert sum(expected.values()) != pytest.approx(1, abs=0.1)
    for folder in ("sigmoid", "again"):
        status, out, _ = run(capsys, "predict", "-m", tmp_path / folder, file, "--json")
        assert status == 0
        found = {row["label"]: row["probability"] for row in json.loads(out)["predictions"]}
        assert found == pytest.approx(expected, abs=1e-5)
    out = run(capsys, "attention", "-m", tmp_path / "again", file, "-o", tmp_path / "map.png")[1]
    assert f"predicted {max(expected, key=expected.get)!r} ({max(expected.values()):.1%})" in out


def test_predict_reports_a_damaged_image_and_continues(
    capsys: pytest.CaptureFixture, export: Path, images: Path
) -> None:
    bad = images / "cat" / "1.png"
    bad.write_bytes(b"not an image")
    status, out, err = run(capsys, "predict", "-m", export, images / "cat")
    assert status == 1
    assert out.count(".png") == 2
    assert str(bad) in err
    assert "no such file or folder" in refused(capsys, "predict", "-m", export, images / "none.png")


def test_attention_writes_an_image(capsys: pytest.CaptureFixture, export: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    status, text, _ = run(capsys, "attention", "-m", export, images / "cat" / "0.png", "-o", out)
    assert status == 0
    assert str(out) in text
    with Image.open(out) as written:
        assert written.size == (2 * 448, 448)  # the image, and next to it the image with the heat map
    vit = load_classifier(export).model.family == "vit"
    assert ("attention rollout" if vit else "Grad-CAM for") in text
    arguments = ["attention", "-m", export, images / "cat" / "0.png"]
    if vit:
        assert "Remove --label" in refused(capsys, *arguments, "--label", "cat")
    else:
        assert "has no attention layers. Use --label" in refused(capsys, *arguments, "--layer", -1)
        assert "Did you mean 'cat'" in refused(capsys, *arguments, "--label", "cats")
    assert "cannot write" in refused(capsys, *arguments, "-o", tmp_path / "nowhere" / "x.png")


def test_evaluate_counts_every_image(capsys: pytest.CaptureFixture, export: Path, images: Path, tmp_path: Path) -> None:
    status, out, _ = run(
        capsys, "evaluate", "-m", export, "--data", images, "--batch-size", 4, "--report", tmp_path / "r", "--json"
    )
    assert status == 0
    result = json.loads(out)
    assert result["count"] == 9
    predictions = run(capsys, "predict", "-m", export, images, "--json", "--top", 1)[1].splitlines()
    right = [Path((p := json.loads(x))["image"]).parent.name == p["predictions"][0]["label"] for x in predictions]
    assert result["top1"] == pytest.approx(np.mean(right))
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000
    assert "Add --data" in refused(capsys, "evaluate", "-m", export)
    arguments = ("evaluate", "-m", export, "--data", images)
    assert "--option: got 'x', expected an option of a folder. Valid names: 'layout'" in refused(
        capsys, *arguments, "--option", "x=1"
    )
    for name in ("split", "max_corrupt"):  # arguments of `evaluate`
        assert f"--option: got '{name}', expected an option of the source" in refused(
            capsys, *arguments, "--option", f"{name}=1"
        )
    (tmp_path / "r" / "metrics.jsonl").touch()
    assert "has the report of a training run" in refused(capsys, *arguments, "--report", tmp_path / "r", "--overwrite")


def test_convert_writes_a_folder_or_a_file(capsys: pytest.CaptureFixture, export: Path, tmp_path: Path) -> None:
    assert run(capsys, "convert", export, tmp_path / "folder")[0] == 0
    assert load_classifier(tmp_path / "folder").classes == CLASSES
    assert run(capsys, "convert", export, tmp_path / "model.safetensors")[0] == 0
    a, b = (load_file(path) for path in (tmp_path / "folder" / "model.safetensors", tmp_path / "model.safetensors"))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_no_command_replaces_a_file_without_overwrite(
    capsys: pytest.CaptureFixture, export: Path, images: Path, tmp_path: Path
) -> None:
    photo, folder = images / "cat" / "0.png", tmp_path / "folder"
    for name in ("config.json", "x.safetensors", "mistakes.csv"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    data = photo.read_bytes()
    commands = [
        (("convert", export, folder), folder / "config.json"),
        (("convert", export, folder / "x.safetensors"), folder / "x.safetensors"),
        (("evaluate", "-m", export, "--data", images, "--report", folder), folder / "mistakes.csv"),
        (("attention", "-m", export, photo, "-o", photo), photo),
    ]
    for command, file in commands:
        error = f"error: {file} exists already. Choose another output, or add --overwrite to replace.\n"
        assert refused(capsys, *command) == error
    assert {file.read_text() for file in folder.iterdir()} == {"mine"}
    assert photo.read_bytes() == data
    for command, file in commands:
        assert run(capsys, *command, "--overwrite")[0] == 0
        assert file.read_bytes() not in (b"mine", data)
    assert "config.json exists already" not in refused(capsys, "convert", "resnet51", tmp_path / "another")
    error = refused(capsys, "convert", export, folder)
    assert f"{folder / 'model.safetensors'} and 1 more of its outputs exist already" in error


def test_convert_warns_that_a_file_holds_only_weights(
    capsys: pytest.CaptureFixture, export: Path, tmp_path: Path
) -> None:
    """A single file cannot hold config.json, with the classes, the transform and the sigmoid."""
    file = tmp_path / "model.safetensors"
    status, _, err = run(capsys, "convert", export, file)
    assert (status, err) == (
        0,
        f"warning: {file} holds only the weights, without the names of the classes, the transform and the kind of "
        "probabilities (softmax). To keep them, give a folder as OUTPUT.\n",
    )
    assert run(capsys, "convert", export, tmp_path / "folder")[2] == ""


def test_a_file_in_the_place_of_a_folder(
    capsys: pytest.CaptureFixture, export: Path, images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "existing"
    file.write_text("mine")
    error = f"error: {file}: got a file, expected a folder. Choose another output, or remove the file.\n"
    evaluate = ("evaluate", "-m", export, "--data", images, "--report")
    attention = ("attention", "-m", export, images / "cat" / "0.png", "--output")
    for option in ((), ("--overwrite",)):
        for output in (file, file / "inside"):
            assert refused(capsys, "convert", export, output, *option) == error
            assert refused(capsys, *evaluate, output, *option) == error
        for command in (("convert", export), attention):
            assert refused(capsys, *command, file / "x.safetensors", *option) == error
    assert file.read_text() == "mine"


def test_convert_adapts_the_first_convolution(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    save_timm(create_model("test_resnet", num_classes=7), tmp_path / "in.safetensors")
    arguments = ["test_resnet", tmp_path / "out.safetensors", "--checkpoint", tmp_path / "in.safetensors"]
    assert "7 classes" in run(capsys, "convert", *arguments, "--in-channels", 1)[1]
    model = create_model("test_resnet", checkpoint_path=tmp_path / "out.safetensors", in_channels=1)
    assert model.num_classes == 7


@pytest.mark.timm
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_efficientnet"])
def test_timm_loads_a_converted_folder_from_disk_and_from_the_hub(
    capsys: pytest.CaptureFixture, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strictly, and with the same logits. The hub is its cache on disk."""
    import torch
    from golden import fill
    from huggingface_hub import constants
    from safetensors.torch import load_file

    options = {"num_classes": 7, "in_channels": 4, "image_size": 64}
    model = create_model(architecture, **options)
    for name, leaf in weights(model).items():  # so that no parameter has its initial value
        leaf.set_value(np.asarray(fill.tensor(timm_name(name), leaf.shape), leaf.dtype))
    save_timm(model, tmp_path / "in.safetensors")
    arguments = [architecture, "--checkpoint", tmp_path / "in.safetensors", "--in-channels", 4, "--image-size", 64]
    folder = tmp_path / "hub" / "models--me--mine" / "snapshots" / ("0" * 40)
    assert run(capsys, "convert", "--to", "timm", *arguments, folder)[0] == 0
    (tmp_path / "hub" / "models--me--mine" / "refs").mkdir()
    (tmp_path / "hub" / "models--me--mine" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    images = fill.images((2, 64, 64, 4))
    expected = np.asarray(model(images))
    assert np.ptp(expected) > 0.1
    timm = import_timm()
    for source in (f"local-dir:{folder}", "hf-hub:me/mine"):
        theirs = timm.create_model(source, pretrained=True).eval()
        with torch.no_grad():
            got = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        config = timm.data.resolve_data_config({}, model=theirs)
        assert config["input_size"] == (4, 64, 64)
        theirs.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    assert "--to" in refused(capsys, "convert", "--to", "onnx", *arguments, tmp_path / "x")


def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture, tmp_path: Path, images: Path) -> None:
    assert "--help" in refused(capsys, "predict")
    assert "is not a folder with config.json" in refused(capsys, "predict", "-m", tmp_path / "none", images)
    assert "found no export/config.json" in refused(capsys, "predict", "-m", images, images)
    assert "Did you mean 'resnet50'" in refused(capsys, "predict", "-m", "resnet5O", images)


def test_an_empty_path_is_not_this_folder(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Such as one made of a variable that is not set."""
    monkeypatch.chdir(export)
    name = json.loads((export / "config.json").read_text())["architecture"]
    for arguments in ([f"-m={name}", "--checkpoint="], ["-m="]):
        assert "got an empty path, expected" in refused(capsys, "predict", *arguments, "image.png")
    for load in (create_model, load_classifier):
        with pytest.raises(UserError, match="got an empty path"):
            load(name, checkpoint_path="")


LONG = "x" * 300


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "-m", LONG, "image.png"], "expected a model name"),
        (["predict", "-m=test_resnet", "image.png", "--checkpoint", LONG], "no such weight file"),
        (["predict", "-m=EXPORT", LONG], "no such file or folder"),
        (["attention", "-m=EXPORT", "image.png", "-o", LONG], "File name too long"),
        (["evaluate", "-m", LONG, "--data=digits"], "expected a model name"),
        (["evaluate", "-m=EXPORT", "--data", LONG], "expected a folder that exists"),
        (["evaluate", "-m=EXPORT", "--data=images", "--report", LONG], "File name too long"),
        (["evaluate", "-m=EXPORT", "--data=images", "--config", f"{LONG}.py"], "x.py"),
        (["convert", LONG, "out"], "expected a model name"),
        (["convert", "EXPORT", LONG], "File name too long"),
        (["train", "--config", f"{LONG}.py"], "x.py"),
        (["plan", "--config", f"{LONG}.py"], "x.py"),
    ],
)
def test_a_name_that_is_too_long_for_a_file(
    command: list[str],
    message: str,
    export: Path,
    images: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(images.parent)
    Image.new("RGB", (8, 8)).save("image.png")
    assert message in refused(capsys, *(word.replace("EXPORT", str(export)) for word in command))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "-m=~/run", "~/x.png"], "~/x.png: no such file"),
        (["predict", "-m=~/none/run", "~/image.png"], "~/none/run is not a folder"),
        (["attention", "-m=~/none/run", "~/image.png"], "~/none/run is not a folder"),
        (["predict", "-m=test_resnet", "--checkpoint=~/none.safetensors", "~/image.png"], "~/none.safetensors"),
        (["evaluate", "-m=~/none/run", "--data=~/images"], "~/none/run is not a folder"),
        (["convert", "~/none/run", "~/out"], "~/none/run is not a folder"),
        (["convert", "test_resnet", "~/out.pth"], "~/out.pth: expected a folder"),
        (["convert", "test_resnet", "~/out", "--checkpoint=~/none.safetensors"], "~/none.safetensors"),
        (["plan", "--config=~/none.py"], "no file '~/none.py'"),
        (["train", "--config=~/none.py"], "no file '~/none.py'"),
        (["train", "--config=configs/folder.py:test_resnet", "--config.source.data_dir=~/x"], "got '~/x', expected"),
    ],
)
def test_the_home_folder_in_every_path(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of a missing file shows which path was looked for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    error = refused(capsys, *command)
    assert message.replace("~", str(tmp_path)) in error
    assert "~" not in error
    assert main.parse(["--config=configs/quickstart.py:vit", "--workdir=~/run"])[1] == tmp_path / "run"


def test_train_is_the_same_as_the_main_module(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    flags = ["--config=configs/quickstart.py:vit", f"--workdir={tmp_path}", "--config.train.steps", "0"]
    message = "error: config.train.steps: got 0, expected 1 or more.\n"
    assert run(capsys, "train", *flags) == (2, "", message)
    assert main.main(flags) == 2
    assert capsys.readouterr().err == message
    status, text, _ = run(capsys, "train", *flags, "--help")
    assert status == 0
    assert "--config.train.steps=0" in text


@pytest.mark.parametrize(
    "command",
    [
        *("recommend", "list", "info", "embed", "probe", "train", "predict", "attention", "evaluate"),
        *("soup", "convert", "push", "plan", "doctor"),
    ],
)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture) -> None:
    if command == "train":
        assert cli.main(["train", "--help"]) == 0
    else:
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: jaxvision {command}")
    examples = text.partition("examples:")[2]
    assert f"jaxvision {command} " in examples or "python -m jaxvision.main " in examples
