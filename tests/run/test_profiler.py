"""What a run records about its speed: traces of some steps, the MFU, and lines that wait for no step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.quick import quick

from jaxvision import run
from jaxvision.errors import UserError
from jaxvision.parallel.chips import Chip
from jaxvision.run import context
from jaxvision.run.config import complete


def lines_of(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"]


def test_steps_are_traced_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The trace, the lines of every second step, and the MFU on a chip with a peak of a teraflop per second."""
    monkeypatch.setattr(context, "chip_of", lambda device: Chip("x", 1.0, flops=2e12, flops_float32=1e12))
    config = quick("resnet", train={"steps": 7, "evaluate_every": 1000.0, "log_every": 2, "profile": "3:4"})
    run.train(config, tmp_path)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    out = capsys.readouterr().out.replace("\n", "")
    assert f"wrote the profile to {tmp_path / 'profile'}" in out
    assert "xprof --logdir" in out

    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 7]
    for line in lines:
        assert 0 < line["mfu"] < 1
        # The MFU is proportional to the throughput.
        assert line["mfu"] / line["images_per_second"] == pytest.approx(lines[0]["mfu"] / lines[0]["images_per_second"])


def test_an_unknown_chip_has_no_mfu(tmp_path: Path) -> None:
    run.train(quick("resnet", train={"steps": 2, "evaluate_every": 1000.0}), tmp_path)
    assert not any("mfu" in line for line in lines_of(tmp_path))
    assert not (tmp_path / "profile").exists()


def test_a_trace_that_reaches_past_the_last_step_ends_with_the_run(tmp_path: Path) -> None:
    run.train(quick("resnet", train={"steps": 2, "evaluate_every": 1000.0, "profile": "2:9"}), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["3", "0:2", "4:3", "a:b", "3:4:5"])
def test_the_steps_of_a_trace_are_checked(steps: str) -> None:
    with pytest.raises(UserError, match=r"config\.train\.profile: got .*, expected the first and the last step"):
        complete(quick("resnet", train={"profile": steps}))
