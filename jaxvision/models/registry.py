"""Architectures by name: for each, the class or function that builds it and the arguments that it is built with.

Each family registers its table of variants once, and a user's module registers its own models with `register_model`.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import jax
from flax import nnx

from jaxvision import extend
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.base import Model
from jaxvision.models.layers.deferred import deferred, is_deferring
from jaxvision.models.layers.init import shapes_only, streams

B = TypeVar("B", bound=Callable[..., Model])


@dataclass(frozen=True)
class Variant:
    """One row of the registry.

    Attributes:
      architecture: name of the model, without a weight tag.
      family: name of the family; ``"custom"`` for a user's model.
      build: class, or function of keyword arguments, that returns the model.
      arguments: the architecture's own keyword arguments for `build`.
      module: the user's module that registered the model; None for a built-in model.
    """

    architecture: str
    family: str
    build: Callable[..., Model]
    arguments: Mapping[str, Any]
    module: str | None = None


_VARIANTS: dict[str, Variant] = {}
# Arguments that are not stored in `Model.options`: they have their own attributes or do not change the structure.
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
# Arguments that every builder has to accept, because any caller may pass them.
#: The fix in the error for an unknown model.
ALL_NAMES = 'Run "jaxvision list" for all names, or name your own model as "module:function".'

_REQUIRED = ("num_classes", "in_channels", "image_size", "rngs")


def register(family: str, build: type[Model], table: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds a built-in family's table: architecture name -> keyword arguments of `build`."""
    for architecture, arguments in table.items():
        if architecture in _VARIANTS:
            raise ValueError(f"{architecture!r} is registered twice")
        _VARIANTS[architecture] = Variant(architecture, family, build, dict(arguments))


@overload
def register_model(build: B, *, name: str | None = None) -> B: ...
@overload
def register_model(build: None = None, *, name: str | None = None) -> Callable[[B], B]: ...
def register_model(build: B | None = None, *, name: str | None = None) -> B | Callable[[B], B]:
    """Registers a model of your own, so that `jaxvision.create_model`, configs and the command line find it by name.

    Use it as a decorator on a subclass of `Model`, or on a function that returns one. The function or constructor takes
    the keyword arguments ``num_classes``, ``in_channels``, ``image_size`` and ``rngs``; any others become options of
    the model. Registering a name again from the same module replaces the model, for example in a notebook.

    Args:
      build: the class or function.
      name: name of the architecture: letters, digits, ``_`` and ``-``, or ``"package.module:function"``. Default: the
        name of the class or function.

    Returns:
      `build`, unchanged.

    Raises:
      UserError: the name belongs to another model, or `build` does not take the required arguments.

    Example:
      >>> from jaxvision.models.vit import VisionTransformer
      >>> @register_model
      ... def two_blocks(*, num_classes=1000, in_channels=3, image_size=32, embed_dim=64, rngs):
      ...     size = {"image_size": image_size, "patch_size": 8, "embed_dim": embed_dim, "depth": 2, "num_heads": 2}
      ...     return VisionTransformer(num_classes=num_classes, in_channels=in_channels, **size, rngs=rngs)
      >>> model = build("two_blocks", num_classes=10, embed_dim=32, rngs=nnx.Rngs(0))
      >>> model.architecture, model.family, model.options
      ('two_blocks', 'custom', (('embed_dim', 32),))
      >>> unregister_model("two_blocks")
    """
    if build is None:
        return lambda build: register_model(build, name=name)
    architecture = build.__name__ if name is None else name
    if not re.fullmatch(r"[\w-]+|[\w.]+:[\w.]+", architecture):
        raise UserError(
            f"register_model: got the name {architecture!r}, expected letters, digits, '_' and '-'. "
            "The part after a dot is the tag of weights."
        )
    known = _VARIANTS.get(architecture)
    module = extend.module_of(build)
    if known is not None and known.module != module:
        owner = "is a built-in model" if known.module is None else f"was registered by the module {known.module}"
        raise UserError(f"register_model: {architecture!r} {owner}. Choose another name.")
    parameters = keyword_parameters(build)
    if missing := [argument for argument in _REQUIRED if argument not in parameters]:
        raise UserError(
            f"register_model: {architecture!r} does not take {', '.join(missing)}. Add the keyword "
            f"argument{'s' if len(missing) > 1 else ''} by name; **options do not count."
        )
    _VARIANTS[architecture] = Variant(architecture, "custom", build, {}, module)
    return build


def unregister_model(name: str) -> None:
    """Removes a model that `register_model` added.

    Raises:
      UserError: the model does not exist, or it is built in.
    """
    if variant(name).module is None:
        raise UserError(f"unregister_model: {name!r} is a built-in model, expected one of your own.")
    del _VARIANTS[name]


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
    """Returns the sorted names of the families.

    >>> families()
    ['efficientnet', 'resnet', 'resnetv2', 'vit']
    """
    return sorted({variant.family for variant in _VARIANTS.values()})


def variant(architecture: str) -> Variant:
    """Returns the row of `architecture`.

    Raises:
      UserError: the architecture is unknown. The message suggests the nearest names.
    """
    if architecture not in _VARIANTS:
        raise unknown_name_error("architecture", architecture, _VARIANTS, expected="a model name", fix=ALL_NAMES)
    return _VARIANTS[architecture]


def keyword_parameters(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a class or function that can be passed by keyword, by name.

    >>> from jaxvision.models.resnet import ResNet
    >>> list(keyword_parameters(ResNet))[:3]
    ['depths', 'block', 'widths']
    """
    # The metaclass of nnx modules replaces the signature of a class by (*args, **kwargs).
    constructor: Any = build.__init__ if isinstance(build, type) else build  # type: ignore[misc]
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(constructor).parameters
    return {name: p for name, p in parameters.items() if p.kind in by_keyword and name != "self"}


def options(architecture: str) -> list[str]:
    """Returns the names of the arguments that users may pass to the architecture's class or function.

    `rngs` and the class's `Model.table_only` arguments are not among them.
    """
    build = variant(architecture).build
    hidden = {"rngs", *getattr(build, "table_only", ())}
    return [name for name in keyword_parameters(build) if name not in hidden]


def default_arguments(architecture: str) -> dict[str, Any]:
    """Returns the arguments of the architecture's class or function that have a default, with the architecture's own.

    >>> default_arguments("resnet50")["depths"], default_arguments("resnet50")["global_pool"]
    ((3, 4, 6, 3), 'avg')
    """
    row = variant(architecture)
    defaults = {name: p.default for name, p in keyword_parameters(row.build).items() if p.default is not p.empty}
    return {**defaults, **row.arguments}


def build(architecture: str, *, rngs: nnx.Rngs, **overrides: Any) -> Model:
    """Returns a newly initialized model.

    Args:
      architecture: name without a weight tag, such as ``"resnet50"``.
      rngs: streams ``params`` and ``dropout``.
      **overrides: arguments of the architecture's class; they take precedence over the architecture's own.

    Raises:
      UserError: the architecture or an argument is unknown, or a user's model is incomplete.

    Example:
      >>> model = build("test_resnet", num_classes=10, rngs=nnx.Rngs(0))
      >>> model.architecture, model.num_classes
      ('test_resnet', 10)
    """
    row = variant(architecture)
    check_options(
        f"model {architecture!r}", overrides, options(architecture), expected=f"an argument of {architecture}"
    )
    arguments: dict[str, Any] = {**row.arguments, **overrides, "rngs": rngs}
    with deferred(is_deferring() and row.module is None):  # a user's model may compute with its initial values
        model = row.build(**arguments)
    if row.module is not None:
        _check_complete(model, architecture)
    model.architecture, model.family = row.architecture, row.family
    model.options = tuple(
        (name, _hashable(value))
        for name, value in sorted(overrides.items())
        if name not in _COMMON and _hashable(value) != _hashable(row.arguments.get(name))
    )
    return model


def _check_complete(model: Any, architecture: str) -> None:
    if not isinstance(model, Model):
        raise UserError(f"model {architecture!r}: got a {type(model).__name__}, expected a subclass of Model.")
    kind = type(model).__name__
    for attribute in ("num_classes", "in_channels", "image_size", "num_features", "classifier_names"):
        if not hasattr(model, attribute):
            raise UserError(f"model {architecture!r}: {kind} does not set {attribute}. Set it in __init__.")


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def build_abstract(architecture: str, **overrides: Any) -> Model:
    """Returns the model with a `jax.ShapeDtypeStruct` in place of each array, without computing initial values."""
    with shapes_only():
        model = build(architecture, rngs=streams(0, 1), **overrides)
    for _, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Variable):
            value = leaf.get_raw_value()
            leaf.set_value(jax.ShapeDtypeStruct(value.shape, value.dtype))
    return model


def check_options(where: str, got: Iterable[str], valid: Iterable[str], *, expected: str) -> None:
    """Raises an error for the first name in `got` that is not in `valid`.

    Raises:
      UserError: a name is unknown. The message names the nearest valid names.
    """
    valid = list(valid)
    for name in got:
        if name not in valid:
            raise unknown_name_error(where, name, valid, expected=expected)
