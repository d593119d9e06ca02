"""The command `jaxvision recommend`: what it prints, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from jaxvision import cli


def test_output(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(5):
            Image.new("RGB", (640, 480), (i, 0, 0)).save(tmp_path / label / f"{i}.jpg")
    assert cli.main(["recommend", "--data", str(tmp_path), "--device", "t4"]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path}: 10 images in 2 classes, 8 to train and 2 to validate and test" in out
    assert "480 px on the shorter side" in out
    row = next(line for line in out.splitlines() if line.startswith("vit_base_patch16_224."))
    assert row.split()[:5] == ["vit_base_patch16_224.augreg2_in21k_ft_in1k", "85.1", "224", "86.6", "17.58"]
    assert row.split()[-1] == "apache-2.0"
    assert f"jaxvision probe --data {tmp_path} -m vit_base_patch16_224.augreg2_in21k_ft_in1k" in out
    assert "python -m jaxvision.main --config configs/folder.py:vit_base_patch16_224.augreg2_in21k_ft_in1k" in out


def test_json(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["recommend", "--images", "800", "--device", "8GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["architecture"] == "resnet50"
    assert found["images"] is None


def test_help_names_the_tree(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["recommend", "--help"])
    out = capsys.readouterr().out
    assert "decision tree" in out
    assert "--max-params" in out


@pytest.mark.parametrize("arguments", [["--data", "nowhere"], ["--latency", "fast"], ["--device", "toaster"], ["x"]])
def test_errors_are_one_line(capsys: pytest.CaptureFixture, arguments: list[str]) -> None:
    assert cli.main(["recommend", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
