"""jaxvision.run.context: what a run decides before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.quick import quick

from jaxvision import report
from jaxvision.parallel.preemption import Preemption
from jaxvision.run.config import complete
from jaxvision.run.context import open_run


@pytest.mark.parametrize(("given", "workers"), [(None, 5), (3, 3)])
def test_workers_are_this_processs_share_of_the_cores_unless_given(
    given: int | None, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a host with 11 cores and two processes."""
    monkeypatch.setattr("jaxvision.run.context.cores_of_this_process", lambda: 5.5)
    config = complete(quick("resnet", data={"workers": given}))
    run = open_run(config, tmp_path, console=report.Console(), clock=report.Clock(), preemption=Preemption())
    assert run.workers == workers
    assert run.config.data.workers == given  # what is recorded, and may differ when the run resumes elsewhere
