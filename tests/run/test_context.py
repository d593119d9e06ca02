"""jaxvision.run.context: what a run decides before it starts."""

from __future__ import annotations

import pytest
from support.quick import quick

from jaxvision.run.config import complete
from jaxvision.run.context import worker_count


@pytest.mark.parametrize(("given", "workers"), [(None, 5), (3, 3)])
def test_workers_are_this_processs_share_of_the_cores_unless_given(
    given: int | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a host with 11 cores and two processes."""
    monkeypatch.setattr("jaxvision.run.context.cores_of_this_process", lambda: 5.5)
    assert worker_count(complete(quick("resnet", data={"workers": given}))) == workers
