"""The memory that a run takes before its first step and after its last, on eight devices with fsdp=8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.compile_flags import xla_flags
from support.paths import ROOT, TESTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak memory"),
]


def measure(workdir: Path, *overrides: str) -> dict:
    done = subprocess.run(
        [sys.executable, TESTS / "support" / "peak_memory.py", workdir, *overrides],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "XLA_FLAGS": xla_flags(8),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_neither_start_nor_end_exceeds_one_sharded_state_and_one_array(tmp_path: Path) -> None:
    """With random and with loaded weights. The best checkpoint, which is not the last, is restored and exported."""
    loaded = f"model.checkpoint_path={tmp_path / 'random' / 'export'}"
    for measured in (measure(tmp_path / "random"), measure(tmp_path / "loaded", loaded)):
        assert measured["whole state"] > 7 * measured["state"]
        for phase in ("start", "end"):
            assert measured[phase]["device"] <= measured["state"] + measured["largest array"], measured
            # All devices share the process's memory, which also holds compiled programs and the buffers of the disk.
            assert measured[phase]["process"] <= 2.5 * measured["whole state"], measured
