"""jaxvision with NNX's graph mode off, which Flax offers by ``NNX_GRAPH_MODE=false``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.paths import ROOT, TESTS

FILES = ["test_contract.py", "train", "models/test_features.py", "models/test_heads.py", "run/test_run.py"]


@pytest.mark.slow
def test_models_training_and_runs_without_graph_mode() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *(str(TESTS / file) for file in FILES)],
        cwd=ROOT,
        env={**os.environ, "NNX_GRAPH_MODE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
