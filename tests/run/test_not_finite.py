"""Steps whose loss or gradient is not finite."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.run.not_finite import NonFiniteSteps, mean_metrics


def test_ten_bad_steps_in_a_row_are_too_many(tmp_path: Path) -> None:
    logged: list[str] = []
    steps = NonFiniteSteps(tmp_path, resume_step=0, skip=True, image_name=str, log=logged.append)

    def metrics(loss: float) -> dict:
        finite = np.isfinite(loss)
        values = {"loss": loss, "grad_norm": 1.0, "learning_rate": 0.1, "finite": finite}
        return {key: jax.numpy.asarray(x) for key, x in values.items()} | {"index": jax.numpy.arange(2)}

    def bad(count: int) -> list[dict]:
        return [metrics(np.nan) for _ in range(count)]

    recent = bad(9)
    steps.check(recent, 9)
    steps.check([*recent, metrics(2.0)], 10)  # those that were checked do not count again
    assert mean_metrics([*recent, metrics(2.0), metrics(4.0)])["loss"] == 3.0
    steps.check(bad(5), 15)
    assert np.isnan(mean_metrics(bad(5))["loss"])
    with pytest.raises(UserError, match="step 20: the loss is nan"):
        steps.check(bad(5), 20)
    assert len(logged) == 9 + 5 + 4
    listed = [json.loads(line) for line in (tmp_path / "not_finite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in listed] == [*range(1, 10), *range(11, 21)]
    assert listed[0]["images"] == ["0", "1"]
    resumed = NonFiniteSteps(tmp_path, resume_step=10, skip=True, image_name=str, log=logged.append)
    assert (tmp_path / "not_finite.jsonl").read_text().count("\n") == 9
    restored = {key: x for key, x in metrics(np.nan).items() if key != "index"}
    resumed.check([restored, metrics(np.nan)], 11)
    assert len(logged) == 9 + 5 + 4 + 1
    assert (tmp_path / "not_finite.jsonl").read_text().count("\n") == 10
