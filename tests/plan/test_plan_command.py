"""The command `jaxvision plan`: what it prints, its exit status and its errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.plans import make_plan

from jaxvision import cli, main

FILE = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({"source": {"name": "digits"}, "model": {"name": "test_resnet", "image_size": 32},
                       "data": {"batch_size": 8}, "optimizer": {"name": "sgd", "learning_rate": 0.1}})
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def test_command(capsys: pytest.CaptureFixture, file: Path) -> None:
    arguments = ["plan", "--config", str(file), "--device", "8GB", "--num-classes", "10"]
    assert cli.main([*arguments, "--no-search", "--config.data.batch_size", "24"]) == 0
    out = capsys.readouterr().out
    assert "test_resnet: 24 images per step on 1 x 8GB (data=1)" in out
    assert "\nfits\n" in out
    assert "available" in out
    assert "6.000" in out  # three quarters of 8 GiB
    assert cli.main([*arguments, "--json", "--no-search"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plans"][0]["batch_size"] == 8
    assert found["plans"][0]["fits"]


def test_command_reports_a_batch_that_does_not_fit(capsys: pytest.CaptureFixture, file: Path) -> None:
    arguments = ["plan", "--config", str(file), "--device", "0.05GB", "--num-classes", "10"]
    assert cli.main([*arguments, "--config.data.batch_size=512"]) == 1
    out = capsys.readouterr().out
    assert "does NOT fit: needs" in out
    largest = int(out.partition("largest batch that fits: ")[2].partition(" (")[0])
    assert 16 < largest < 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e"], "got 'v5e', expected a TPU and its grid. Pass for example --topology v5e:2x4."),
        (["--topology", "v5:2x4"], "--topology: got 'v5', expected a TPU. Did you mean"),
        (["--device", "h10"], "device: got 'h10', expected a GPU or a memory such as 8GB. Did you mean 'h100'"),
        ([], "got --topology None and --device None, expected one of them"),
        (["--device", "h100", "--topology", "v5e:2x4"], "got --topology v5e:2x4 and --device h100"),
        (["--device", "h100", "--config.data.batchsize=3"], "config.data.batchsize: unknown key. Did you mean"),
        (["--device", "h100", "--batch-size", "3"], "unknown argument '--batch-size', expected --config.SECTION"),
        (["--device", "h100", "--foo", "--config.seed=1"], "unknown argument '--foo', expected --config.SECTION"),
        (["--topology", "v5e:2x4x4"], "expected a v5e grid with 2 sides of 1 to 16 chips"),
        (["--topology", "v6e:32x16"], "expected a v6e grid with 2 sides of 1 to 16 chips"),
        (["--device", "0GB"], "device: got 0GB, expected more than 0 GB"),
        (["--device", "h100", "--num-classes", "0"], "plan: got num_classes=0"),
        (["--device", "h100", "--config.data.batch_size", "8", "16"], "unknown argument '16'"),
        (["--device", "h100", "--config.data.batch_size=0"], "data.batch_size=0, expected at least 1 of each"),
    ],
)  # fmt: skip
def test_errors_are_one_line(capsys: pytest.CaptureFixture, file: Path, arguments: list[str], message: str) -> None:
    assert cli.main(["plan", "--config", str(file), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_without_libtpu(capsys: pytest.CaptureFixture, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert cli.main(["plan", "--config", str(file), "--topology", "v5e:2x4"]) == 2
    assert (
        capsys.readouterr().err
        == "error: compiling for a TPU needs the package 'libtpu'. Install it in the checkout: pip install '.[tpu]'\n"
    )


def test_the_flags_of_a_mesh_choose_it(file: Path) -> None:
    chosen = make_plan(mesh={"data": 2, "fsdp": 8}, zero1=True)
    parsed, _ = main.parse([f"--config={file}", *chosen.flags.split()])
    assert parsed is not None
    assert parsed.mesh.to_dict() == chosen.mesh
    assert parsed.sharding.zero1
