"""The rows of docs/architecture.md: imports point downward only."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT

import jaxvision

PACKAGE = Path(jaxvision.__file__).parent

ROW = {
    "tree": 0,
    "errors": 0,
    "disk": 0,
    "platform": 0,
    "extend": 0,
    "lazy": 0,
    "network": 0,
    "models": 1,
    "augment": 1,
    "report": 1,
    "checkpoint": 1,
    "parallel": 1,
    "weights": 2,
    "data": 2,
    "train": 2,
    "plan": 2,
    "create": 3,
    "analysis": 3,
    "doctor": 3,
    "classifier": 4,
    "ensemble": 4,
    "soup": 4,
    "eval": 5,
    "features": 5,
    "run": 6,
    "advice": 7,
    "main": 8,
    "cli": 8,
}
# Edges that the rows alone would forbid. Each has its reason in docs/architecture.md.
ALLOWED = {("models", "create")}
# Edges within a row that are allowed.
SIBLINGS = {
    ("main", "cli"),
    ("tree", "errors"),
    ("extend", "errors"),
    ("ensemble", "classifier"),
    ("soup", "classifier"),
    ("soup", "ensemble"),
}

#: Frameworks that jaxvision reads or compares with, and never imports by itself.
OTHERS = {"torch", "torchvision", "timm", "tensorflow", "tensorflow_datasets", "matplotlib"}


@functools.cache
def edges() -> set[tuple[str, str]]:
    found = set()
    for file in PACKAGE.rglob("*.py"):
        relative = file.relative_to(PACKAGE)
        if relative.parts[0] in ("__init__.py", "configs"):
            continue
        unit = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            for module in modules:
                parts = module.split(".")
                if parts[0] == "jaxvision" and len(parts) > 1 and parts[1] != unit:
                    found.add((unit, parts[1]))
    return found


def test_every_part_has_a_row() -> None:
    units = {
        p.stem for p in PACKAGE.iterdir() if p.suffix in ("", ".py") and p.name[0] not in "_." and p.name != "configs"
    }
    assert units <= set(ROW), units - set(ROW)


def test_imports_point_downward() -> None:
    wrong = {
        (a, b)
        for a, b in edges()
        if b in ROW and not ROW[a] > ROW[b] and (a, b) not in ALLOWED and (a, b) not in SIBLINGS
    }
    assert not wrong, f"these imports do not point downward: {sorted(wrong)}"


def test_every_imported_package_is_a_dependency() -> None:
    """A package that is installed only because another one needs it may be gone with a release of that one."""
    imported = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines} | {"libtpu"}  # of jax[tpu]
    installed = metadata.packages_distributions()
    undeclared = {
        name
        for name in imported - {"jaxvision"} - sys.stdlib_module_names
        if name in installed and not declared & {canonicalize_name(each) for each in installed[name]}
    }
    assert not undeclared


def test_models_and_weights_import_no_more_than_they_may() -> None:
    below = {a: {b for x, b in edges() if x == a and b in ROW} for a in ROW}
    assert below["models"] <= {"tree", "errors", "platform", "extend", "create"}
    assert not any(b == "create" for a in ("weights", "train", "eval", "data") for b in below[a])
    # These receive a model. They may know layers, but never a family.
    for unit in ("weights", "train", "plan", "analysis", "classifier", "eval", "run"):
        files = list((PACKAGE / unit).rglob("*.py")) or [PACKAGE / f"{unit}.py"]
        for file in files:
            text = file.read_text()
            for family in ("resnet", "vit", "efficientnet"):
                assert f"models.{family}" not in text, file
                assert f"models import {family}" not in text, file


def modules_after(statement: str) -> set[str]:
    """Returns the modules that another Python has imported after a statement."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["jaxvision", "jaxvision.models", "jaxvision.cli", "jaxvision.run.planning"])
def test_import_brings_no_other_framework(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert module in loaded
    assert not OTHERS & {name.partition(".")[0] for name in loaded}


def test_the_trainer_imports_nothing_from_plan_and_no_other_framework() -> None:
    loaded = modules_after("from jaxvision.run import train")
    assert "jaxvision.run.loop" in loaded
    assert not [name for name in loaded if name.startswith("jaxvision.plan")]
    assert not OTHERS & {name.partition(".")[0] for name in loaded}
