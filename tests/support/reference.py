"""Real timm on PyTorch, the independent reference of the tests and benchmarks; never needed to use jaxvision."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import Any

_LIBRARIES: list[Any] = []  # a declared schema lives as long as the Library object that declared it


def have_timm() -> bool:
    """Returns whether PyTorch and timm are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "timm"))


def import_torchvision() -> Any:
    """Returns the torchvision module, its Python half at least.

    A torchvision built for another torch cannot load its compiled operators, and then importing it fails where it
    registers their fake kernels. Neither timm nor the transforms use those operators, so each is declared with a
    placeholder schema until the import goes through.
    """
    from torch import library as operators

    for _ in range(64):
        try:
            import torchvision

            return torchvision
        except RuntimeError as e:
            found = re.search(r"operator torchvision::(\w+) does not exist", str(e))
            if not found:
                raise
            library = operators.Library("torchvision", "FRAGMENT")
            library.define(f"{found.group(1)}(Tensor x) -> Tensor")
            _LIBRARIES.append(library)
            for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise ImportError("torchvision does not load beside this torch")


def import_timm() -> Any:
    """Returns the timm module."""
    import_torchvision()
    import timm

    return timm
