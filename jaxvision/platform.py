"""The same numbers in another way on another platform, chosen when the program is compiled for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

_KNOWN: ContextVar[str | None] = ContextVar("platform", default=None)


def by_platform(*args: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """Returns ``cpu(*args)`` on a CPU and ``default(*args)`` elsewhere.

    The choice is made when XLA is handed the program, so that one exported program is right for every platform; within
    `compiled_for` it is made at once.

    >>> int(by_platform(1, cpu=lambda x: x + 1, default=lambda x: x + 1))
    2
    """
    known = _KNOWN.get()
    if known is None:
        return jax.lax.platform_dependent(*args, cpu=cpu, default=default)
    return (cpu if known == "cpu" else default)(*args)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """While this lasts, what is traced is for one platform, ``"cpu"``, ``"tpu"`` or ``"gpu"``, and takes its way only.

    A choice that is left open costs memory where only a part of the intermediate values is kept for the backward pass:
    the way that is not taken leaves zeros in the place of what it would have kept, which no device shares with another.

    >>> with compiled_for("tpu"):
    ...     by_platform(1, cpu=lambda x: x + 1, default=lambda x: x + 2)
    3
    """
    token = _KNOWN.set(platform)
    try:
        yield
    finally:
        _KNOWN.reset(token)
