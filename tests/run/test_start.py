"""jaxvision.run.start: warnings about settings that are valid, but probably not intended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.quick import quick

from jaxvision import run


@pytest.mark.parametrize(("warmup", "message"), [(True, "the warm-up keeps"), (False, "the average stays untrained")])
def test_an_average_longer_than_the_run(warmup: bool, message: str, tmp_path: Path, capsys) -> None:
    """It is announced, and by default the exported average is trained: its BatchNorm statistics have moved."""
    config = quick(train={"steps": 2, "ema_decay": 0.9999, "ema_warmup": warmup}, model={"name": "test_resnet"})
    run.train(config, str(tmp_path))
    text = " ".join("".join(capsys.readouterr()).split())
    assert (
        "train.ema_decay: got 0.9999, which averages about 10,000 steps, but training takes only 2: " + message in text
    )
    mean = load_file(tmp_path / "export/model.safetensors")["bn1.running_mean"]
    assert (np.abs(mean).max() > 1e-3) == warmup
