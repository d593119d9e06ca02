"""Public names that a package imports on first use, so that importing the package stays cheap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Iterable[str]], *, modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the ``__getattr__`` and ``__dir__`` of a package whose public names are imported on first use.

    Args:
      package: name of the package, its ``__name__``.
      names: module inside the package -> the public names that it defines.
      modules: modules of the package that are attributes of it, too.

    Example:
      >>> getattr_, dir_ = lazy_names("jaxvision", {"errors": ("UserError",)})
      >>> getattr_("UserError").__name__, "UserError" in dir_()
      ('UserError', True)
    """
    home = {name: module for module, defined in names.items() for name in defined}
    submodules = set(modules)

    def get(name: str) -> Any:
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        if name in submodules:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names_of() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return get, names_of
