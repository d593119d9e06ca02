"""Names of leaves, and ordered (pattern, value) tables over them.

Freezing, weight decay, layer-wise learning rates and sharding all use a list of rows ``(pattern, value)``. The name of
a leaf is its path with dots, such as ``blocks.0.attn.qkv.kernel``. A pattern is a regular expression anchored at the
start of the name. The first row that matches gives the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax

from jaxvision.errors import UserError, nearest

T = TypeVar("T")
Table = Sequence[tuple[str, T]]


def join(path: Iterable[Any]) -> str:
    """Returns the dotted name of a path of attribute names, list positions or JAX key entries.

    >>> join(("blocks", 0, "attn", "qkv", "kernel"))
    'blocks.0.attn.qkv.kernel'
    """
    return ".".join(_segment(p) for p in path)


def _segment(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _is_variable(x: Any) -> bool:
    # A Flax Variable is a pytree node with one child. It counts as the leaf, because the child has no name.
    return hasattr(x, "get_raw_value") or (hasattr(x, "raw_value") and hasattr(x, "type"))


def names(tree: Any) -> list[str]:
    """Returns the names of the leaves of a pytree (or an `nnx.State`), in the order of the tree.

    >>> names({"conv1": {"kernel": 1.0}, "fc": {"bias": 2.0, "kernel": 3.0}})
    ['conv1.kernel', 'fc.bias', 'fc.kernel']
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    return [join(path) for path, _ in leaves]


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Returns `tree` with each leaf replaced by ``fn(name, leaf, *leaves_of_rest)``. A Variable counts as a leaf.

    >>> map_named(lambda name, x: name.endswith("bias"), {"bias": 1.0, "kernel": 2.0})
    {'bias': True, 'kernel': False}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x, *xs: fn(join(path), x, *xs), tree, *rest, is_leaf=_is_variable
    )


_RAISE: Any = object()


def match(
    leaf_names: Sequence[str], table: Table[T], *, default: T = _RAISE, unused_ok: bool = False, what: str = "table"
) -> dict[str, T]:
    """Returns ``{name: value}`` from the first row of `table` whose pattern matches the start of the name.

    Args:
      leaf_names: dotted names, as returned by `names`.
      table: ordered rows (pattern, value).
      default: value for a name that no row matches. Without it such a name is an error.
      unused_ok: accept a row that matches no name. By default that is an error, because a misspelled pattern would
        silently have no effect.
      what: name of the table in messages, such as ``"freeze"``.

    Raises:
      UserError: a pattern is not a regular expression or matches no name, or no row matches a name.

    Example:
      >>> match(["blocks.0.kernel", "head.bias"], [(r"blocks", 0.1), (r"head", 1.0)])
      {'blocks.0.kernel': 0.1, 'head.bias': 1.0}
    """
    try:
        compiled = [(re.compile(pattern), value) for pattern, value in table]
    except re.error as e:
        raise UserError(f"{what}: got {e.pattern!r}, which is not a regular expression: {e}.") from e
    used = [False] * len(compiled)
    result: dict[str, T] = {}
    for name in leaf_names:
        for i, (pattern, value) in enumerate(compiled):
            if pattern.match(name):
                used[i] = True
                result.setdefault(name, value)
        if name not in result:
            if default is _RAISE:
                raise UserError(f"{what}: no pattern matches {name!r}. End the table with a row for '.*'.")
            result[name] = default
    if not unused_ok:
        for (pattern, _), was_used in zip(compiled, used, strict=True):
            if not was_used:
                close = nearest(pattern.pattern, leaf_names)
                hint = f" The nearest name is {close[0]!r}." if close else ""
                raise UserError(f"{what}: the pattern {pattern.pattern!r} matches no parameter.{hint}")
    return result
