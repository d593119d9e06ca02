"""Built-ins by name, and a user's own function wherever a config names a built-in.

A config may hold a built-in name, a callable, or ``"package.module:function"``. Whatever it is, `resolve` returns the
function, and that function's keyword-only arguments are the keys of the config's section.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxvision.errors import UserError, unknown_name_error

#: The name of a config file's module is this and the file's name. It can be imported only after the file is loaded.
CONFIG_MODULE = "_jaxvision_config_"


def resolve(
    where: str, name: str | Callable[..., Any], builtin: Mapping[str, Any], *, expected: str = "a function"
) -> Callable[..., Any]:
    """Returns the function that `name` refers to.

    Args:
      where: the key or argument that has the name, for messages, such as ``"loss.kind"``.
      name: a key of `builtin`, a callable, or ``"package.module:function"``. The module is imported from the Python
        path or from the current directory.
      builtin: name -> function, or name -> ``"package.module:function"`` for a built-in that is imported on first use.
      expected: what the function is, for messages, such as ``"a loss"``.

    Raises:
      UserError: no such built-in, module or function.

    Example:
      >>> resolve("function", "math:sqrt", {})(9.0)
      3.0
      >>> resolve("function", "root", {"root": "math:sqrt"})(9.0)
      3.0
    """
    if callable(name):
        return name
    if name in builtin:
        found = builtin[name]
        return found if callable(found) else resolve(where, found, {})
    if not isinstance(name, str) or ":" not in name:
        own = 'Write your own as "package.module:function".'
        raise unknown_name_error(where, str(name), builtin, expected=expected, fix=own)
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise UserError(
            f'{where}: got {name!r}, expected "package.module:function", names with dots and without slashes or .py. '
            "Start the command in the folder of the module, or add that folder to PYTHONPATH."
        )
    if module.startswith(CONFIG_MODULE) and module not in sys.modules:
        file = f"{module.removeprefix(CONFIG_MODULE)}.py"
        raise UserError(
            f"{where}: got {attribute!r} of the config file {file}, which is not loaded. Add --config {file} with its "
            "path, or move the function to a module and name it there."
        )
    try:
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # `python -m` has it, a console command does not
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as e:
        raise UserError(f"{where}: cannot import {module!r} of {name!r} ({e}). Check the name and PYTHONPATH.") from e
    except AttributeError as e:
        if module == "__main__":
            raise UserError(
                f"{where}: got {attribute!r} of another script or notebook. Move it to a module and name it there."
            ) from e
        raise UserError(f"{where}: the module {module!r} has no {attribute!r}. Check the name after the colon.") from e
    except Exception as e:
        raise UserError(f"{where}: importing {module!r} of {name!r} raises {type(e).__name__}: {e}.") from e
    if not callable(found):
        raise UserError(f"{where}: got {name!r} of type {type(found).__name__}, expected a function.")
    return found


def call(what: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Returns ``function(*args, **options)``, after checking that the function takes these arguments.

    Args:
      what: what the function is, for messages, such as ``"schedule"``.
      function: from `resolve`.
      *args: positional arguments that jaxvision passes.
      **options: keyword arguments: jaxvision's own and those of the config's section.

    Raises:
      UserError: the function does not take an argument, or an argument without a default is missing.

    Example:
      >>> call("function", lambda x, *, scale: x * scale, 3, scale=2)
      6
    """
    check_call(what, function, *args, **options)
    return function(*args, **options)


def check_call(what: str, function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Checks that a function takes these arguments, without calling it; the arguments are those of `call`.

    >>> check_call("function", lambda x, *, scale=1: x * scale, 3, size=2)
    Traceback (most recent call last):
    ...
    jaxvision.errors.UserError: function: got an unexpected keyword argument 'size'. The function takes (x, scale).
    """
    try:
        inspect.signature(function).bind(*args, **options)
    except TypeError as e:
        taken = ", ".join(inspect.signature(function).parameters)
        raise UserError(f"{what}: {e}. The function takes ({taken}).") from e


def check_returned(what: str, value: Any, *, valid: bool, expected: str) -> None:
    """Raises unless what a user's function returned is `valid`.

    >>> check_returned("schedule.name", None, valid=False, expected="a function of the step")
    Traceback (most recent call last):
    ...
    jaxvision.errors.UserError: schedule.name: the function returned None, expected a function of the step.
    """
    if not valid:
        got = "None" if value is None else f"a value of type {type(value).__name__}"
        raise UserError(f"{what}: the function returned {got}, expected {expected}.")


def module_of(function: Callable[..., Any]) -> str:
    """Returns the name by which the module of a function or class can be imported.

    ``python -m mine`` runs the module as ``__main__``, but it is imported as ``mine``. A script or a notebook, which
    another program cannot import, stays ``"__main__"``.

    >>> module_of(resolve)
    'jaxvision.extend'
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if function.__module__ == "__main__" and spec is not None:
        return spec.name
    return function.__module__


def import_path(what: str, function: Callable[..., Any]) -> str:
    """Returns the ``"package.module:function"`` by which `resolve` finds `function`, so that a file can record it.

    Args:
      what: where the function was given, for messages, such as ``"config.loss.kind"``.
      function: a function or class at the top level of a module.

    Raises:
      UserError: `function` has no such name: it is a lambda, a `functools.partial` or defined inside a function.

    Example:
      >>> import os.path
      >>> import_path("function", os.path.basename)
      'posixpath:basename'
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    found: Any = sys.modules.get(module or "")
    for part in (name or "<none>").split("."):
        found = getattr(found, part, None)
    if found is not function:
        raise UserError(
            f"{what}: got {function!r}, expected a function at the top level of a module, which can be imported again. "
            "Define it by def or class in a module."
        )
    return f"{module}:{name}"
