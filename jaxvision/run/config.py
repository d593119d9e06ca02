"""Configs: load a file, apply overrides, complete and validate the keys."""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from ml_collections import ConfigDict, config_dict

from jaxvision.errors import UserError, nearest, unknown_name_error
from jaxvision.eval import metrics
from jaxvision.extend import CONFIG_MODULE, import_path, module_of
from jaxvision.models.registry import keyword_parameters
from jaxvision.parallel.mesh import AXES
from jaxvision.run.profiler import parse_steps
from jaxvision.run.recipe import AUTO
from jaxvision.run.sections import SECTIONS, Section, model_builder, without_none
from jaxvision.run.values import convert, parse, type_text

PACKAGED_CONFIGS = Path(__file__).parents[1] / "configs"

Parameters = Mapping[str, inspect.Parameter]


# --- Config files ---


def packaged() -> list[str]:
    """Returns the names of the configs that jaxvision includes, as ``configs/NAME.py``.

    >>> packaged()[0]
    'configs/cifar10_cpu.py'
    """
    return [f"configs/{p.name}" for p in sorted(_packaged_folder().glob("*.py")) if not p.name.startswith("_")]


def _packaged_folder() -> Path:
    # A wheel has the configs inside the package, a checkout next to it.
    return PACKAGED_CONFIGS if PACKAGED_CONFIGS.is_dir() else PACKAGED_CONFIGS.parents[1] / "configs"


def load(spec: str) -> ConfigDict:
    """Returns the config of a file, as its ``get_config`` returns it: without defaults.

    Args:
      spec: ``"path.py"`` or ``"path.py:argument"``. A path that does not exist is looked up among the included configs.

    Raises:
      UserError: no such file, an error in the file, or an argument that its ``get_config`` rejects.

    Example:
      >>> load("configs/quickstart.py:resnet").model.name
      'test_resnet'
    """
    path, colon, argument = spec.partition(":")
    get_config = _import(_find(path)).get_config
    try:
        return get_config(argument) if colon else get_config()
    except ValueError as e:  # raised by get_config for its argument
        raise UserError(f"{spec}: {e}") from e
    except Exception as e:
        raise UserError(f"{spec}: get_config raises {type(e).__name__}: {e}.") from e


def _find(path: str) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        inside = ", ".join(str(p) for p in sorted(file.glob("*.py")) if not p.name.startswith("_"))
        fix = f"Choose one of {inside}." if inside else "It has no Python files."
        raise UserError(f"--config: got the folder {path!r}, expected a Python file with get_config(). {fix}")
    if file.is_file() and file.suffix != ".py":
        raise UserError(f"--config: got {path}, expected a Python file with get_config().")
    if file.is_file():
        return file
    included = _packaged_folder() / file.name
    if included.suffix == ".py" and included.is_file() and file.parent.name in ("", "configs"):
        return included
    close = nearest(f"configs/{file.name}", packaged())
    fix = f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(packaged())}, or a file of your own."
    raise UserError(f"--config: no file {path!r}. {fix}")


def _import(file: Path) -> ModuleType:
    """Returns the module of a config file; functions in it can be found by name, as those of any module."""
    spec = importlib.util.spec_from_file_location(CONFIG_MODULE + file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{file}: {type(e).__name__}: {e}. Fix the config file.") from e
    if not hasattr(module, "get_config"):
        raise UserError(f"{file}: no function get_config(). Add one that returns a ConfigDict.")
    cloudpickle.register_pickle_by_value(module)  # worker processes cannot import a config file
    return module


# --- Complete and validate ---


def complete(config: Mapping[str, Any], overrides: Sequence[tuple[str, str]] = (), *, check: bool = True) -> ConfigDict:
    """Returns a config with every key that its sections' functions take, validated.

    A key that `config` and `overrides` omit has its function's default. A function (your own optimizer, for example) is
    replaced by its ``"package.module:function"``.

    Args:
      config: sections as in `jaxvision.run.sections.SECTIONS`, ``seed`` and ``mesh``.
      overrides: (``"section.key"``, text) from the command line. They take precedence over `config`.
      check: raise for missing keys and for values out of range. False, for help, checks only names and types.

    Raises:
      UserError: an unknown section or key, a value of the wrong type or out of range, or a missing key.

    Example:
      >>> overrides = [("optimizer.name", "optax:lion"), ("optimizer.b1", "0.95")]
      >>> config = complete(load("configs/quickstart.py:vit"), overrides)
      >>> config.optimizer.b1, config.optimizer.b2, config.checkpoint.keep
      (0.95, 0.99, 2)
    """
    given = ConfigDict(config)
    for name in given:
        if name not in {"seed", "mesh", *SECTIONS}:
            raise unknown_name_error("config", name, {"seed", "mesh", *SECTIONS}, expected="a section")
    texts = dict(overrides)
    full = ConfigDict({"seed": _seed(given, texts), "mesh": _mesh(given, texts)})
    for name, section in SECTIONS.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): texts.pop(key) for key in list(texts) if key.startswith(prefix)}
        full[name], unknown = _complete_section(name, section, given.get(name, {}), own)
        texts |= {f"{name}.{key}": own[key] for key in unknown}
    for key in texts:
        raise _unknown_key_error(key, leaves(full))
    if check:
        _check_required(full)
        _check_model(full)
        _check_ranges(full)
        _check_best(full)
    return full


def _seed(given: ConfigDict, texts: dict[str, str]) -> Any:
    seed = parse(texts.pop("seed"), int) if "seed" in texts else given.get("seed", 0)
    return _convert("seed", seed, int)


def _mesh(given: ConfigDict, texts: dict[str, str]) -> ConfigDict:
    """Returns the mesh; an axis that only an override names is the last one."""
    axes = given.get("mesh", {"data": -1})
    if not isinstance(axes, Mapping | ConfigDict) or not (axes or any(key.startswith("mesh.") for key in texts)):
        raise UserError(
            f"config.mesh: got {repr(axes).strip()}, expected axes and their sizes, such as {{'data': -1}}."
        )
    overridden = {key.removeprefix("mesh."): texts.pop(key) for key in list(texts) if key.startswith("mesh.")}
    sizes = dict(axes.items()) | {
        axis: parse(overridden[axis], int) for axis in sorted(overridden, key=lambda axis: (*AXES, axis).index(axis))
    }
    for axis, size in sizes.items():
        if axis not in AXES:
            raise unknown_name_error("config.mesh", axis, AXES, expected="an axis")
        _convert(f"mesh.{axis}", size, int)
    return ConfigDict(sizes)


def _complete_section(
    name: str, section: Section, given: Mapping[str, Any], texts: Mapping[str, str]
) -> tuple[ConfigDict, list[str]]:
    """Returns a section with all its keys, and those of `texts` that it does not have."""
    parameters = _own_parameters(section)
    values = dict(given.items())
    for key in (*values, *texts):
        if key in section.passed:
            raise UserError(
                f"config.{name}.{key}: this key cannot be set, because it follows from the data or from other keys. "
                "Remove it."
            )
    if section.choice is not None:
        key = section.choice.key
        if key in texts:
            values[key] = parse(texts[key], parameters[key].annotation)
        chosen = values.get(key, parameters[key].default)
        if chosen is inspect.Parameter.empty:
            raise UserError(f"config.{name}.{key}: not set. Add --config.{name}.{key}=..., or a line to the file.")
        if callable(chosen):
            values[key] = chosen = import_path(f"config.{name}.{key}", chosen)
        added = _chosen_parameters(section, chosen)
        taken = {*parameters} if section.choice.exclusive else {key}
        for clash in sorted(taken & added.keys()):
            raise UserError(
                f"config.{name}.{key}: got {chosen!r}, whose argument {clash!r} is a key of {name} already. Rename the "
                "argument."
            )
        parameters |= added
    for key in values:
        if key not in parameters:
            raise _unknown_key_error(f"{name}.{key}", [f"{name}.{valid}" for valid in parameters])
    values |= {key: parse(text, parameters[key].annotation) for key, text in texts.items() if key in parameters}
    completed = ConfigDict()
    for key, parameter in parameters.items():
        value = values.get(key, None if parameter.default is parameter.empty else parameter.default)
        if key in values and value is not None:
            if isinstance(value, str) and value.startswith("~/"):  # shells replace ~ only at the start of a word
                value = os.path.expanduser(value)
            value = _convert(f"{name}.{key}", value, parameter.annotation, default=parameter.default)
        elif key in values and not _may_be_none(parameter):
            raise _type_error(f"{name}.{key}", value, parameter.annotation, default=parameter.default)
        completed[key] = config_dict.placeholder(object) if value is None else value
    return completed, [key for key in texts if key not in parameters]


def _own_parameters(section: Section) -> dict[str, inspect.Parameter]:
    """Returns the keys of a section that do not depend on its choice."""
    parameters: dict[str, inspect.Parameter] = {}
    for function in section.functions:
        parameters |= _parameters(function)
    return {key: parameter for key, parameter in parameters.items() if key not in section.passed}


def _chosen_parameters(section: Section, chosen: Any) -> dict[str, inspect.Parameter]:
    """Returns the keys that the section has because of the function that `chosen` refers to."""
    choice = section.choice
    function = None if choice is None or chosen is None else choice.function(chosen)
    if choice is None or function is None:
        return {}
    hidden = {*choice.passed, *getattr(function, "table_only", ())}
    parameters = dict(list(_parameters(function).items())[choice.positional :])
    if not choice.optional:
        return {key: parameter for key, parameter in parameters.items() if key not in hidden}
    hidden |= set(_own_parameters(section))
    return {
        key: parameter.replace(default=None, annotation=parameter.annotation | None)
        for key, parameter in parameters.items()
        if key not in hidden
    }


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the named parameters of a function or class, with their annotations evaluated."""
    try:
        hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    except Exception:  # names that exist only for type checkers
        hints = {}
    return {
        name: parameter.replace(annotation=hints.get(name, _default_type(parameter)))
        for name, parameter in keyword_parameters(function).items()
    }


def _default_type(parameter: inspect.Parameter) -> Any:
    """Returns the type of a parameter without annotation: that of its default if it is a simple one."""
    kind = type(parameter.default)
    return kind if kind in (bool, int, float, str) else Any


def _may_be_none(parameter: inspect.Parameter) -> bool:
    # A required key may be None here, and `_check_required` rejects it.
    return parameter.default in (None, parameter.empty) or type(None) in typing.get_args(parameter.annotation)


def _convert(key: str, value: Any, annotation: Any, *, default: Any = None) -> Any:
    try:
        return convert(value, annotation)
    except TypeError:
        raise _type_error(key, value, annotation, default=default) from None


def _type_error(key: str, value: Any, annotation: Any, *, default: Any) -> UserError:
    example = "" if default in (None, inspect.Parameter.empty) else f" Example: --config.{key}={default}."
    return UserError(f"config.{key}: got {value!r}, expected {type_text(annotation)}.{example}")


def _unknown_key_error(key: str, valid: Sequence[str] | Mapping[str, Any]) -> UserError:
    close = nearest(key, valid) or nearest(key.rpartition(".")[2], valid)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return UserError(f"config.{key}: unknown key. {hint}Add --help to list all keys of the config.")


def _check_required(config: ConfigDict) -> None:
    for name, section in SECTIONS.items():
        chosen = {} if section.choice is None else _chosen_parameters(section, config[name][section.choice.key])
        for key, parameter in (_own_parameters(section) | chosen).items():
            if parameter.default is parameter.empty and config[name][key] is None:
                raise UserError(
                    f"config.{name}.{key}: not set, expected {type_text(parameter.annotation)}. "
                    f"Add --config.{name}.{key}=..., or a line to the file."
                )


def _check_model(config: ConfigDict) -> None:
    """Raises for a model of the config file or of a script: another process could not import it to load the export."""
    build = model_builder(config.model.name)
    is_of_script = module_of(build) == "__main__" and hasattr(sys.modules["__main__"], "__file__")
    if is_of_script or build.__module__.startswith(CONFIG_MODULE):
        place = "script" if is_of_script else "config file"
        raise UserError(
            f"config.model.name: got {config.model.name!r}, which is defined in the {place}, expected a model in a "
            "module, so that its export can be loaded elsewhere. Move it to mine.py and set "
            f"config.model.name='mine:{build.__qualname__}'."
        )


# A range is here only if the function that takes the key does not check it itself.
_AT_LEAST = {
    "data.eval_batch_size": 1,
    "data.max_corrupt": 0,
    "data.memory_limit": 0,
    "data.workers": 0,
    "optimizer.weight_decay": 0,
    "train.accumulate": 1,
    "train.batch_norm_group": 1,
    "train.log_every": 1,
    "train.patience": 1,
    "train.save_every": 1,
    "train.steps": 1,
}
_POSITIVE = ("optimizer.learning_rate", "train.epochs", "train.evaluate_every")


def _check_ranges(config: ConfigDict) -> None:
    if not 0 <= config.seed < 2**31:
        raise UserError(f"config.seed: got {config.seed}, expected a number from 0 to 2**31 - 1.")
    values = leaves(config)
    for key, least in _AT_LEAST.items():
        if values[key] is not None and not values[key] >= least:
            raise UserError(f"config.{key}: got {values[key]}, expected {least} or more.")
    for key in _POSITIVE:
        if values[key] != AUTO and not 0 < values[key] < math.inf:
            raise UserError(f"config.{key}: got {values[key]}, expected a number above 0.")
    decay = config.train.ema_decay
    if decay is not None and not 0 < decay < 1:
        raise UserError(
            f"config.train.ema_decay: got {decay}, expected a number between 0 and 1, such as 0.9998, or None."
        )
    if config.train.profile is not None:
        parse_steps(config.train.profile)
    if config.train.not_finite not in ("stop", "skip"):
        raise unknown_name_error("config.train.not_finite", config.train.not_finite, ("stop", "skip"))


def _check_best(config: ConfigDict) -> None:
    own = metrics.metric_function(config.metric.name)
    if own is not None:
        metrics.check_metric(own, **{key: x for key, x in without_none(config.metric).items() if key != "name"})
    valid = [*metrics.METRICS, *([] if own is None else [metrics.metric_key(own)])]
    if config.checkpoint.best not in (None, *valid):
        raise unknown_name_error("config.checkpoint.best", config.checkpoint.best, valid, expected="a metric")


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns ``{"section.key": value}`` for all keys of a config.

    >>> leaves(ConfigDict({"seed": 0, "mesh": {"data": -1}}))
    {'mesh.data': -1, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
