"""The images that `jaxvision predict` and `jaxvision attention` are given: files, folders and standard input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvision import cli
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.cli import exit as process_exit
from jaxvision.create import create_model

LATIN = os.fsdecode(b"caf\xe9.png")  # a name in Latin-1, which is not UTF-8


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export folder of a finished run."""
    model = create_model("test_resnet", num_classes=2, image_size=32)
    classifier = Classifier(model, ("cat", "d\u00f6g"), Preprocess(image_size=32, crop_pct=1.0))
    return save_classifier(tmp_path_factory.mktemp("export"), classifier)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images a/1.png, a/café.png (in Latin-1) and b/1.png."""
    rng = np.random.default_rng(0)
    for name in ("a/1.png", f"a/{LATIN}", "b/1.png"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(file)
    return tmp_path / "images"


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in arguments])
    return (status, *capsys.readouterr())


def predicted(out: str) -> list[str]:
    """Returns the names that `predict` printed, without those of folders."""
    return [Path(line).name for line in out.splitlines() if not line.startswith(" ")]


def test_a_missing_path_among_good_ones_is_skipped(
    capsys: pytest.CaptureFixture, export: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.heic").touch()
    arguments = ("predict", "-m", export)
    impossible = "x" * 300  # no file system allows such a name
    status, out, err = run(
        capsys, *arguments, images / "none.png", impossible, images / "b", tmp_path / "empty", images / "a/1.png"
    )
    assert status == 1
    assert predicted(out) == ["1.png", "1.png"]
    none, long, empty = err.splitlines()
    assert long == f"error: {impossible}: no such file or folder."
    assert none == f"error: {images / 'none.png'}: no such file or folder."
    assert empty.startswith(f"error: {tmp_path / 'empty'}: got a folder without images (only HEIC: 1 (x.heic; not supp")
    status, out, err = run(capsys, *arguments, images / "none.png", tmp_path / "empty")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "none.png: no such file or folder; " in err


def test_nothing_that_can_be_read_is_a_mistake(capsys: pytest.CaptureFixture, export: Path, tmp_path: Path) -> None:
    for name in ("x.jpg", "y.heic"):
        (tmp_path / name).write_bytes(b"not an image")
    status, out, err = run(capsys, "predict", "-m", export, tmp_path / "x.jpg", tmp_path / "y.heic")
    assert (status, out) == (2, "")
    bad, heic = err.splitlines()
    assert "x.jpg: not an image, or one of a kind that Pillow cannot read" in bad
    assert heic.endswith(" bytes). HEIC: not supported, convert them with ImageMagick: mogrify -format jpg *.heic")


def test_a_folder_is_walked_as_for_training(capsys: pytest.CaptureFixture, export: Path, images: Path) -> None:
    (images / "a" / "loop").symlink_to(images)
    (images / "a" / "._1.png").touch()
    (images / "cat.jpg").mkdir()
    (images / "b" / "IMG.HEIC").touch()
    Image.new("RGB", (9, 9)).save(images / "cat.jpg" / "X.TIFF")
    status, out, err = run(capsys, "predict", "-m", export, images)
    assert status == 1  # a photograph has no prediction
    assert predicted(out) == ["1.png", "caf\\xe9.png", "1.png", "X.TIFF"]
    assert err == (
        f"error: {images}: ignored HEIC: 1 (b/IMG.HEIC; not supported, convert them with ImageMagick: mogrify -format "
        "jpg b/*.HEIC), hidden: 1 (a/._1.png), link to a parent folder: 1 (a/loop)\n"
    )


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_paths_from_standard_input(
    capsys: pytest.CaptureFixture,
    export: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    separator: bytes,
) -> None:
    monkeypatch.setenv("HOME", str(images))
    names = [os.fsencode(images / "a" / LATIN), b"~/b", b""]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(separator.join(names)), encoding="ascii"))
    status, out, _ = run(capsys, "predict", "-m", export, "-", images / "a" / "1.png")
    assert status == 0
    assert predicted(out) == ["caf\\xe9.png", "1.png", "1.png"]


def test_no_path_from_standard_input(
    capsys: pytest.CaptureFixture, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    status, _, err = run(capsys, "predict", "-m", export, "-")
    assert (status, err) == (2, "error: standard input: got no paths, expected one per line.\n")


@pytest.mark.parametrize("top", [0, -1])
def test_top_is_at_least_one(capsys: pytest.CaptureFixture, export: Path, images: Path, top: int) -> None:
    status, out, err = run(capsys, "predict", "-m", export, images, "--top", top)
    assert (status, out, err) == (2, "", f"error: --top: got {top}, expected 1 or more.\n")


def on_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: object) -> tuple[int, bytes]:
    """Returns the exit status and the output of the command on a terminal with this encoding, as a process has it."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # run_and_exit sets these; the fixture restores them
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setenv("PYTHONWARNINGS", "")
    with warnings.catch_warnings(), pytest.raises(SystemExit) as exited:
        process_exit.run_and_exit(lambda: cli.main([str(a) for a in arguments]))
    out.flush()
    return exited.value.code, out.buffer.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_names_that_are_not_utf8_on_any_terminal(
    export: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    file = images / "a" / LATIN
    status, out = on_terminal(monkeypatch, encoding, "predict", "-m", export, file)
    assert status == 0
    assert out.splitlines()[0] == os.fsencode(images / "a") + rb"/caf\xe9.png"
    umlaut = b"\\xf6" if encoding == "ascii" else "\u00f6".encode(encoding)
    assert b"d" + umlaut + b"g" in out

    status, out = on_terminal(monkeypatch, encoding, "predict", "-m", export, file, "--json")
    assert status == 0
    line = json.loads(out.decode(encoding))
    assert Path(line["image"]) == file  # the name itself, which opens the file
    assert {row["label"] for row in line["predictions"]} == {"cat", "d\u00f6g"}

    output = tmp_path / "maps"
    status, out = on_terminal(monkeypatch, encoding, "attention", "-m", export, images / "a", "-o", output)
    assert status == 0
    assert rb"caf\xe9-attention.png: predicted " in out
    assert {os.fsencode(path.name) for path in output.iterdir()} == {b"1-attention.png", b"caf\xe9-attention.png"}


def test_a_logged_warning_has_no_name_of_a_logger() -> None:
    """Also if a library has called `logging.warning`, which adds a handler that prints such names."""
    program = """
import logging
from jaxvision.cli.exit import run_and_exit

def command():
    logging.warning("one")
    logging.getLogger("jaxvision.weights").warning("two\\x1b[2J")
    return 0

run_and_exit(command)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stderr == "warning: one\nwarning: two\\x1b[2J\n"


def test_a_name_with_control_codes_stays_in_one_line(
    capsys: pytest.CaptureFixture, export: Path, images: Path, tmp_path: Path
) -> None:
    """In text; JSON has the name itself. U+009B starts a command of a terminal, as ESC [ does."""
    folder = tmp_path / "odd"
    folder.mkdir()
    file = (images / "a" / "1.png").rename(folder / "x\n\t\x1b[2J\u009b2J\r.png")
    shown = r"x\n\t\x1b[2J\x9b2J\r.png".replace(r"\r", r"\x0d")
    status, out, _ = run(capsys, "predict", "-m", export, folder)
    assert (status, out.splitlines()[0], len(out.splitlines())) == (0, f"{folder}/{shown}", 3)
    assert json.loads(run(capsys, "predict", "-m", export, folder, "--json")[1])["image"] == str(file)
    status, out, _ = run(capsys, "attention", "-m", export, folder, "-o", tmp_path)
    assert (status, out.count("\n")) == (0, 1)
    assert out.endswith(f"on {shown}\n")
    file.write_bytes(b"no image")
    status, out, err = run(capsys, "predict", "-m", export, file, folder / "no\nfile.png")
    assert (status, out, err.count("\n")) == (2, "", 2)
    assert shown in err
    assert r"no\nfile.png: no such file or folder." in err


def test_attention_explains_several_images(
    capsys: pytest.CaptureFixture, export: Path, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "maps"
    arguments = ("attention", "-m", export, images, images / "none.png")
    status, out, err = run(capsys, *arguments, "-o", output)
    assert status == 1
    assert "none.png: no such file" in err
    assert err.count("too coarse to show where it looks") == 1
    labels = run(capsys, "predict", "-m", export, images, "--top", 1, "--json")[1].splitlines()
    top = [json.loads(line)["predictions"][0] for line in labels]
    names = ["1-attention.png", "caf\\xe9-attention.png", "1-attention-2.png"]  # a/1.png and b/1.png are two images
    for line, name, row in zip(out.splitlines(), names, top, strict=True):
        assert line.startswith(f"{output / name}: predicted {row['label']!r} ({row['probability']:.1%}), Grad-CAM for")
    assert len(list(output.iterdir())) == 3
    status, _, err = run(capsys, *arguments, "-o", tmp_path / "map.png")
    assert (status, err.count("\n")) == (2, 2)
    assert f"--output: got {tmp_path / 'map.png'} for 3 images, expected a folder" in err
