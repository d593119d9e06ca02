"""The command `jaxvision`: what it prints and writes, and what it says to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvision import cli
from jaxvision.augment.preprocess import Preprocess
from jaxvision.create import Classifier, create_model, load_classifier, save_classifier
from jaxvision.weights.timm import save_timm

CLASSES = ("cat", "dog", "horse")


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a finished run leaves it."""
    options = {"patch_size": 8} if "vit" in request.param else {}
    model = create_model(request.param, num_classes=3, image_size=32, **options)
    folder = tmp_path_factory.mktemp(request.param)
    return save_classifier(folder, Classifier(model, CLASSES, Preprocess(image_size=32, crop_pct=1.0)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in CLASSES:
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (40, 50 + i, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in arguments])
    return (status, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def test_list(capsys: pytest.CaptureFixture) -> None:
    assert run(capsys, "list", "resnet1*")[1].split() == ["resnet18", "resnet101", "resnet152"]
    tags = json.loads(run(capsys, "list", "resnet50*", "--pretrained", "--json")[1])
    assert "resnet50.a1_in1k" in tags
    assert "no model matches" in refused(capsys, "list", "alexnet*")


def test_info(capsys: pytest.CaptureFixture) -> None:
    text = run(capsys, "info", "resnet50")[1]
    assert "25.56 M" in text  # He et al.'s ResNet-50, by everybody's count
    assert "4.11 G" in text
    assert json.loads(run(capsys, "info", "resnet50", "--json")[1])["total"]["parameters"] == 25_557_032
    assert "did you mean 'resnet50'" in refused(capsys, "info", "resnet5O")


def test_predict_is_the_model_on_the_transformed_picture(
    capsys: pytest.CaptureFixture, export: Path, pictures: Path
) -> None:
    file = pictures / "cat" / "0.png"
    status, out, _ = run(capsys, "predict", "-m", export, file, pictures / "dog", "--json", "--top", 2)
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["image"]).parent.name for line in lines] == ["cat", "dog", "dog", "dog"]
    # By hand: the shorter side, 40, becomes 32, the middle is taken, ImageNet's mean and deviation.
    image = Image.open(file).resize((round(50 * 32 / 40), 32), Image.Resampling.BICUBIC).crop((4, 0, 36, 32))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    logits = np.asarray(load_classifier(export).model(((np.asarray(image) / 255 - mean) / std)[None].astype("f4")))[0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert [row["index"] for row in lines[0]["predictions"]] == list(np.argsort(-probabilities)[:2])
    assert lines[0]["predictions"][0]["probability"] == pytest.approx(probabilities.max(), abs=1e-5)
    assert lines[0]["predictions"][0]["label"] == CLASSES[probabilities.argmax()]
    assert "%" in run(capsys, "predict", "-m", export, file)[1]


def test_predict_tells_of_bad_pictures_and_goes_on(capsys: pytest.CaptureFixture, export: Path, pictures: Path) -> None:
    bad = pictures / "cat" / "1.png"
    bad.write_bytes(b"no picture")
    status, out, err = run(capsys, "predict", "-m", export, pictures / "cat")
    assert status == 2
    assert out.count(".png") == 2
    assert str(bad) in err
    assert "no such picture" in refused(capsys, "predict", "-m", export, pictures / "none.png")


def test_attention_writes_a_picture(
    capsys: pytest.CaptureFixture, export: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    status, text, _ = run(capsys, "attention", "-m", export, pictures / "cat" / "0.png", "-o", out)
    assert status == 0
    assert str(out) in text
    with Image.open(out) as picture:
        assert picture.size == (32, 32)
    vit = load_classifier(export).model.family == "vit"
    assert ("rollout" in text) == vit
    arguments = ["attention", "-m", export, pictures / "cat" / "0.png"]
    assert "is for a" in refused(capsys, *arguments, *(["--label", "cat"] if vit else ["--layer", -1]))
    assert "cannot write" in refused(capsys, *arguments, "-o", tmp_path / "nowhere" / "x.png")


def test_evaluate_counts_every_picture(
    capsys: pytest.CaptureFixture, export: Path, pictures: Path, tmp_path: Path
) -> None:
    status, out, _ = run(
        capsys, "evaluate", "-m", export, "--data", pictures, "--batch-size", 4, "--report", tmp_path / "r", "--json"
    )
    assert status == 0
    result = json.loads(out)
    assert result["count"] == 9
    predictions = run(capsys, "predict", "-m", export, pictures, "--json", "--top", 1)[1].splitlines()
    right = [Path((p := json.loads(x))["image"]).parent.name == p["predictions"][0]["label"] for x in predictions]
    assert result["top1"] == pytest.approx(np.mean(right))
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000
    assert "evaluate" in refused(capsys, "evaluate", "-m", export)


def test_convert_makes_what_timm_reads(capsys: pytest.CaptureFixture, export: Path, tmp_path: Path) -> None:
    assert run(capsys, "convert", export, tmp_path / "folder")[0] == 0
    assert load_classifier(tmp_path / "folder").classes == CLASSES
    assert run(capsys, "convert", export, tmp_path / "model.safetensors")[0] == 0
    a, b = ((path).read_bytes() for path in (tmp_path / "folder" / "model.safetensors", tmp_path / "model.safetensors"))
    assert a == b


def test_convert_adapts_a_weight_file(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    save_timm(create_model("test_resnet", num_classes=7), tmp_path / "in.safetensors")
    arguments = ["test_resnet", tmp_path / "out.safetensors", "--checkpoint", tmp_path / "in.safetensors"]
    assert "7 classes" in run(capsys, "convert", *arguments, "--in-channels", 1)[1]
    model = create_model("test_resnet", checkpoint_path=tmp_path / "out.safetensors", in_channels=1)
    assert model.num_classes == 7


def test_mistakes(capsys: pytest.CaptureFixture, tmp_path: Path, pictures: Path) -> None:
    assert "--help" in refused(capsys, "predict")
    assert "is not a folder with config.json" in refused(capsys, "predict", "-m", tmp_path / "none", pictures)
    assert "no finished model" in refused(capsys, "predict", "-m", pictures, pictures)
    assert "did you mean 'resnet50'" in refused(capsys, "predict", "-m", "resnet5O", pictures)
