"""What is evaluated during training, what chooses the checkpoint and stops early, and what is reported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.quick import quick, refused

from jaxvision import run
from jaxvision.errors import UserError
from jaxvision.run.config import load, packaged

#: 1,438 training digits in 90 batches of 16: six evaluations in as many steps.
OFTEN = {"source": {"validation_fraction": 0.1}, "train": {"steps": 6, "evaluate_every": 1 / 90}}


def growing(evaluation) -> float:
    """Returns a number that grows with each evaluation of a run."""
    growing.calls += 1
    return growing.calls


growing.lower_is_better = True


def evaluations(workdir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "validation"]


SLOW = [pytest.param(*row, marks=pytest.mark.slow) for row in (("calibration_error", min), ("top1", max))]


def unknown(evaluation) -> float:
    """Returns what a metric with a mistake may return."""
    return float("nan")


def test_a_metric_that_is_never_finite_chooses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = quick("resnet", **OFTEN, metric={"name": unknown}, checkpoint={"best": "unknown"})
    for _ in range(2):  # the second time, the run is finished
        assert np.isnan(run.train(config, tmp_path)["unknown"])
    assert "the last: no evaluation has a finite unknown" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(("metric", "better"), [("loss", min), *SLOW])
def test_the_direction_of_best_is_that_of_the_metric(
    metric: str, better: object, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    result = run.train(quick("resnet", **OFTEN, checkpoint={"best": metric}), tmp_path)
    out = capsys.readouterr().out
    values = {int(line["step"]): line[metric] for line in evaluations(tmp_path)}
    assert len(values) == 6
    assert len(set(values.values())) > 1
    best = better(values.values())
    starred = [int(step) for step in re.findall(r"validation at step (\d+) .*best", out)]
    seen = list(values.values())
    is_new = [seen[i] == better(seen[: i + 1]) and seen[i] not in seen[:i] for i in range(6)]
    assert starred == [step for step, new in zip(values, is_new, strict=True) if new]
    exported = int(re.search(rf"exporting the model of step (\d+), the best {metric} on the", out)[1])
    assert exported == max(step for step, value in values.items() if value == best)
    assert result["count"] == 359  # the test data


def test_a_metric_of_your_own_states_its_direction(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    growing.calls = 0
    own = {"metric": {"name": growing}, "checkpoint": {"best": "growing"}}
    config = quick("resnet", **OFTEN, **own)
    config.train.patience = 3
    run.train(config, tmp_path)
    out = capsys.readouterr().out
    assert [line["growing"] for line in evaluations(tmp_path)] == [1, 2, 3, 4]  # the first is the best: three more
    assert "stopped early: 3 evaluations without a better growing" in out
    assert "exporting the model of step 1, the best growing on the validation data" in out


@pytest.mark.parametrize(
    ("keys", "where"),
    [({"train": {"patience": 2}}, r"train\.patience: got 2"), ({"checkpoint": {"best": "loss"}}, r"best: got 'loss'")],
)
def test_the_test_data_decide_nothing(keys: dict, where: str, tmp_path: Path) -> None:
    """Without validation data there is neither early stopping nor a best checkpoint."""
    with pytest.raises(UserError, match=rf"config\..*{where} without validation .*source\.validation_fraction=0\.1"):
        run.train(quick("resnet", **keys), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_validation_data_no_checkpoint_is_the_best(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run.train(quick("resnet", train={"evaluate_every": 1 / 90}, checkpoint={"keep": 1}), tmp_path)
    out = capsys.readouterr().out
    assert "best" not in re.sub(r"--\S+", "", out)
    assert "exporting the model of step 6, the last: no validation data to choose by" in out
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["6"]


def test_the_direction_is_not_a_key(capsys: pytest.CaptureFixture) -> None:
    error = refused(capsys, "--config=configs/quickstart.py:vit", "--config.checkpoint.best_mode=min")
    assert "config.checkpoint.best_mode: this key cannot be set" in error


@pytest.mark.parametrize("name", [name for name in packaged() if "imagenet" in name])
def test_imagenet_configs_watch_a_part_of_the_training_data(name: str) -> None:
    """As google-research/big_vision does: https://github.com/google-research/big_vision, configs/vit_s16_i1k.py."""
    source = load(name).source
    assert (source.train, source.validation, source.test) == ("train[:99%]", "train[99%:]", "validation")
