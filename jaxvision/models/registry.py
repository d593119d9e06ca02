"""Every architecture by name: which class builds it, and with which arguments.

A family registers its table of variants once, at the end of its file. Nothing else knows the families.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxvision.errors import unknown_name_error
from jaxvision.models.base import Model
from jaxvision.models.layers.init import shapes_only, streams


@dataclass(frozen=True)
class Variant:
    """One row of a family's table."""

    architecture: str
    family: str
    build: type[Model]
    arguments: Mapping[str, Any]


_VARIANTS: dict[str, Variant] = {}
# Arguments that every family has; they have attributes of their own, or say nothing of the shape.
_COMMON = {
    "num_classes",
    "in_channels",
    "image_size",
    "dropout",
    "head_dropout",
    "attention_dropout",
    "drop_path",
    "dtype",
    "param_dtype",
}


def register(family: str, build: type[Model], table: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds a family's table: architecture name -> keyword arguments of `build`."""
    for architecture, arguments in table.items():
        if architecture in _VARIANTS:
            raise ValueError(f"{architecture!r} is registered twice")
        _VARIANTS[architecture] = Variant(architecture, family, build, dict(arguments))


def architectures(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """Returns the sorted names of the architectures that match a shell pattern.

    >>> architectures("resnet5?")
    ['resnet50']
    """
    return sorted(
        name
        for name, variant in _VARIANTS.items()
        if fnmatch.fnmatch(name, pattern) and family in (None, variant.family)
    )


def families() -> list[str]:
    """Returns the names of the families.

    >>> families()
    ['efficientnet', 'resnet', 'resnetv2', 'vit']
    """
    return sorted({variant.family for variant in _VARIANTS.values()})


def variant(architecture: str) -> Variant:
    """Returns the row of `architecture`.

    Raises:
      UserError: no such architecture; the message names the nearest.
    """
    if architecture not in _VARIANTS:
        raise unknown_name_error("model", architecture, _VARIANTS)
    return _VARIANTS[architecture]


def options(architecture: str) -> list[str]:
    """Returns the keyword arguments that the architecture's class takes from a user: not `rngs`, nor what is code."""
    build = variant(architecture).build
    # A module class is called through nnx's metaclass, whose own signature is (*args, **kwargs).
    parameters = inspect.signature(build.__init__).parameters.values()  # type: ignore[misc]
    hidden = {"rngs", *build.table_only}
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in hidden]


def build(architecture: str, *, rngs: nnx.Rngs, **overrides: Any) -> Model:
    """Returns a freshly initialized model.

    Args:
      architecture: timm's name without a tag, such as ``"resnet50"``.
      rngs: streams ``params`` and ``dropout``.
      **overrides: arguments of the family's class in the place of the variant's own.

    Raises:
      UserError: unknown architecture or argument.

    Example:
      >>> model = build("test_resnet", num_classes=10, rngs=nnx.Rngs(0))
      >>> model.architecture, model.num_classes
      ('test_resnet', 10)
    """
    row = variant(architecture)
    check_options(f"argument of {architecture}", overrides, options(architecture))
    arguments: dict[str, Any] = {**row.arguments, **overrides, "rngs": rngs}
    model = row.build(**arguments)
    model.architecture, model.family = row.architecture, row.family
    model.options = tuple(
        (name, _hashable(value))
        for name, value in sorted(overrides.items())
        if name not in _COMMON and _hashable(value) != _hashable(row.arguments.get(name))
    )
    return model


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def build_abstract(architecture: str, **overrides: Any) -> Model:
    """Returns the model with `jax.ShapeDtypeStruct` leaves: its structure, at no cost in memory or time."""
    with shapes_only():
        model = build(architecture, rngs=streams(0, 1), **overrides)
    for _, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Variable):
            value = leaf.get_raw_value()
            leaf.set_value(jax.ShapeDtypeStruct(value.shape, value.dtype))
    return model


def check_options(what: str, got: Iterable[str], valid: Iterable[str]) -> None:
    """Raises the error for the first of `got` that is not in `valid`."""
    valid = list(valid)
    for name in got:
        if name not in valid:
            raise unknown_name_error(what, name, valid)
