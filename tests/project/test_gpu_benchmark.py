"""benchmarks/gpu.py, which is for GPUs that the tests do not have, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.paths import ROOT
from support.reference import have_timm

MODELS = ("test_resnet", "test_vit", "test_efficientnet")
SECTIONS = ("parity", "training", "inference", "memory", "attention", "depthwise")


def run(folder: Path, *flags: str, **environment: str) -> tuple[int, str, dict[str, Any]]:
    """Returns the status, the output and the JSON file of ``benchmarks/gpu.py --tiny``."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", *flags]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout, json.loads((folder / "gpu.json").read_text())


def test_every_section_is_measured(tmp_path):
    status, output, report = run(tmp_path)
    rows = {section: [row for row in report["rows"] if row["section"] == section] for section in SECTIONS}
    assert not [row for row in report["rows"] if row["note"].startswith(("failed", "skipped", "too large"))]
    assert status == 0
    assert {"jax", "jaxlib", "flax"} <= report["versions"].keys()

    errors = {(row["case"].split()[0], row["measure"]): (row["value"], row["other_value"]) for row in rows["parity"]}
    kinds = ["logits, float32", "gradient, float32", "logits, bfloat16", "gradient, bfloat16"]
    assert errors.keys() == {(model, kind) for model in MODELS for kind in kinds}
    for (_, kind), (error, limit) in errors.items():
        assert 0 < error <= limit
        assert error < {"logits, float32": 1e-5, "gradient, float32": 0.01}.get(kind, 0.2)

    for section in ("training", "inference"):
        speeds = [row for row in rows[section] if row["unit"] == "images/s"]
        assert [row["case"] for row in speeds] == [f"{model} @ 32, batch 4" for model in MODELS]
        assert all(row["value"] >= row["median"] > 0 for row in speeds)
        assert all((row["other_value"] is not None) == have_timm() for row in speeds)
    assert ("pip install torch" in output) != have_timm()
    assert [row["measure"] for row in rows["memory"]] == ["predicted peak"] * 3
    assert all(0 < row["value"] < 1 for row in rows["memory"])
    assert {"cuDNN", "XLA", "explicit"} <= {row["measure"] for row in rows["attention"]}
    assert len(rows["depthwise"]) == 12

    header, *table = output[output.index("section ") :].splitlines()
    assert "best" in header
    assert [line.split()[0] for line in table] == [row["section"] for section in SECTIONS for row in rows[section]]


def test_what_does_not_fit_into_the_time_is_named(tmp_path):
    status, output, report = run(tmp_path, "--minutes", "0")
    skipped = {
        (row["section"], row["case"]) for row in report["rows"] if row["note"].startswith("skipped: 0 s were up")
    }
    of_models = {(section, model) for section in ("parity", "training", "inference", "memory") for model in MODELS}
    assert skipped == of_models | {("attention", "layers"), ("depthwise", "layers")}
    assert len(report["rows"]) == len(skipped)
    assert status == 1
    assert output.splitlines()[-1].startswith("depthwise")


def test_a_crash_leaves_rows(tmp_path):
    status, _, report = run(tmp_path, JAX_PLATFORMS="nonsense")
    notes = {row["note"] for row in report["rows"]}
    assert len(report["rows"]) == 14
    assert all(note.startswith("failed with status 1: ") and "nonsense" in note for note in notes)
    assert status == 1
