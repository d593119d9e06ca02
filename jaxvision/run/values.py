"""Values of config keys: from the text of a flag, and checked against the annotation of a function's argument."""

from __future__ import annotations

import ast
import collections.abc
import numbers
import pathlib
import types
import typing
from typing import Any

import numpy as np


def parse(text: str, annotation: Any) -> Any:
    """Returns the value that a flag's text stands for, as Python would read it; `convert` checks its type.

    Args:
      text: such as ``"1e-3"``, ``"True"``, ``"(0.9, 0.99)"``, ``"None"``, or a string without quotes.
      annotation: type annotation of the argument.

    Example:
      >>> parse("5", int), parse("5", str), parse("true", bool), parse("0.9,0.99", tuple[float, float])
      (5, '5', True, (0.9, 0.99))
      >>> parse("layer1,layer2", typing.Sequence[str]), parse("bfloat16", Any)
      (('layer1', 'layer2'), 'bfloat16')
    """
    members = _members(annotation)
    if text == "None":
        return None
    if set(members) <= {str, type(None)}:
        return text
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if bool in members and int not in members and text in ("0", "1"):
        return text == "1"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = _parse_word(text, members)
    is_sequence = all(_element_types(member) is not None for member in members if member is not type(None))
    if is_sequence and not isinstance(value, list | tuple | str):
        value = (value,)
    if str in members and not _fits(value, annotation):
        return text
    return value


def _parse_word(text: str, members: tuple[Any, ...]) -> Any:
    """Returns the value of a text that is not a Python literal."""
    if float in members and str not in members:
        try:
            return float(text)  # inf, nan
        except ValueError:
            return text
    if any(_element_types(member) is str for member in members):
        return tuple(text.split(","))
    return text


def convert(value: Any, annotation: Any) -> Any:
    """Returns `value` as the annotated type: an int as a float where a float is expected, a list as a tuple.

    Accepts any value for annotations other than classes, sequences, unions and literals.

    Raises:
      TypeError: `value` is of another type.

    Example:
      >>> convert(10, float), convert([1, 2], tuple[int, ...]), convert(None, int | None)
      (10.0, (1, 2), None)
    """
    members = _members(annotation)
    if len(members) > 1:
        for member in members:
            if _fits(value, member):
                return convert(value, member)
        raise TypeError
    if annotation is Any or annotation is object:
        return value
    if annotation in (None, type(None)):
        fits = value is None
    elif annotation is bool:
        fits = isinstance(value, bool)
    elif annotation is int:
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    elif annotation is float:
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            return float(value)
        fits = False
    elif typing.get_origin(annotation) is typing.Literal:
        fits = value in typing.get_args(annotation)
    elif _element_types(annotation) is not None:
        return _convert_sequence(value, annotation)
    else:
        kind = typing.get_origin(annotation) or annotation
        fits = isinstance(value, kind) if isinstance(kind, type) else True
    if not fits:
        raise TypeError
    return value


def _convert_sequence(value: Any, annotation: Any) -> Any:
    elements = _element_types(annotation)
    if isinstance(value, str) and typing.get_origin(annotation) is collections.abc.Sequence and elements is str:
        return value  # such as one regular expression instead of several
    if not isinstance(value, list | tuple):
        raise TypeError
    if isinstance(elements, tuple):
        if len(value) != len(elements):
            raise TypeError
        return tuple(convert(x, element) for x, element in zip(value, elements, strict=True))
    return tuple(convert(x, elements) for x in value)


def _fits(value: Any, annotation: Any) -> bool:
    try:
        convert(value, annotation)
    except TypeError:
        return False
    return True


def _members(annotation: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for each in typing.get_args(annotation) for member in _members(each))
    return (annotation,)


def _element_types(annotation: Any) -> Any:
    """Returns the type of a sequence's elements, a tuple of types for a fixed length, None for another annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (tuple, list):
        return Any
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return arguments
    return arguments[0] if origin in (tuple, list, collections.abc.Sequence) else None


_TEXTS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    complex: "a complex number",
    type(None): "None",
    pathlib.Path: "a path",
    np.bool_: "True or False",
    np.number: "a number",
    np.ndarray: "an array",
}


def type_text(annotation: Any) -> str:
    """Returns an annotation in words.

    >>> type_text(int | None), type_text(tuple[float, float]), type_text(typing.Sequence[str])
    ('an integer or None', 'a tuple of 2 values', 'a tuple, each element a string')
    >>> type_text(float | np.ndarray | list[int]), type_text(dict[str, int])
    ('a number or an array or a tuple, each element an integer', 'a dict')
    """
    return " or ".join(dict.fromkeys(_member_text(member) for member in _members(annotation)))


def _member_text(member: Any) -> str:
    if member in _TEXTS:
        return _TEXTS[member]
    if typing.get_origin(member) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(member)))
    if typing.get_origin(member) is collections.abc.Callable:
        return "a function"
    elements = _element_types(member)
    if isinstance(elements, tuple):
        return f"a tuple of {len(elements)} values"
    if elements is not None:
        return f"a tuple, each element {type_text(elements)}" if elements is not Any else "a tuple"
    name = (getattr(member, "__name__", None) or str(member)).rpartition(".")[2]
    if name == "Array":  # jax.Array; this module does not import JAX
        return "an array"
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
