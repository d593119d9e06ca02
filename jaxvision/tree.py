"""Names of leaves, and ordered (pattern, value) tables over them.

One idea serves freezing, weight decay, layer-wise learning rates and sharding: a list of rows
``(pattern, value)``. A leaf's name is its path with dots (``blocks.0.attn.qkv.kernel``); a pattern is a regular
expression anchored at the start of the name; the first row that matches gives the value.
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
    # A Flax Variable is itself a pytree node with one child. It is the leaf here: its child has no name of its own.
    return hasattr(x, "get_raw_value") or (hasattr(x, "raw_value") and hasattr(x, "type"))


def names(tree: Any) -> list[str]:
    """Returns the names of the leaves of a pytree (or of an `nnx.State`), in the tree's own order.

    >>> names({"conv1": {"kernel": 1.0}, "fc": {"bias": 2.0, "kernel": 3.0}})
    ['conv1.kernel', 'fc.bias', 'fc.kernel']
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    return [join(path) for path, _ in leaves]


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Returns `tree` with ``fn(name, leaf, *leaves_of_rest)`` in the place of each leaf; Variables are leaves.

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
      leaf_names: dotted names, as `names` gives them.
      table: ordered rows (pattern, value).
      default: value for a name that no row matches; without it such a name is an error.
      unused_ok: accept a row that matches no name. By default that is an error, because a
        misspelled pattern would otherwise freeze, decay or shard nothing and say nothing.
      what: how messages call the table, such as ``"freeze"``.

    Raises:
      UserError: a pattern is not a regular expression, matches nothing, or a name is matched by no row.

    Example:
      >>> match(["blocks.0.kernel", "head.bias"], [(r"blocks", 0.1), (r"head", 1.0)])
      {'blocks.0.kernel': 0.1, 'head.bias': 1.0}
    """
    try:
        compiled = [(re.compile(pattern), value) for pattern, value in table]
    except re.error as e:
        raise UserError(f"{what}: {e.pattern!r} is not a regular expression: {e}") from e
    used = [False] * len(compiled)
    result: dict[str, T] = {}
    for name in leaf_names:
        for i, (pattern, value) in enumerate(compiled):
            if pattern.match(name):
                used[i] = True
                result.setdefault(name, value)
        if name not in result:
            if default is _RAISE:
                raise UserError(f"{what}: no pattern matches {name!r}; end the table with a row for '.*'")
            result[name] = default
    if not unused_ok:
        for (pattern, _), was_used in zip(compiled, used, strict=True):
            if not was_used:
                close = nearest(pattern.pattern, leaf_names)
                hint = f"; the nearest is {close[0]!r}" if close else ""
                raise UserError(f"{what}: the pattern {pattern.pattern!r} matches no parameter{hint}")
    return result
