"""The flat public surface of each package: every name exists, and importing it is cheap where that matters."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize("package", ["train", "eval", "features", "advice", "parallel", "analysis"])
def test_every_public_name_exists(package: str) -> None:
    module = import_module(f"jaxvision.{package}")
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018


def test_parallel_does_not_import_jax() -> None:
    """`jaxvision doctor` imports a part of it where JAX may not be importable."""
    code = "import sys, jaxvision.parallel.accelerators; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
