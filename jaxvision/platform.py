"""Two implementations of the same arithmetic, one of them for CPUs; the choice is made at compilation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

_KNOWN: ContextVar[str | None] = ContextVar("platform", default=None)


def by_platform(*args: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """Returns ``cpu(*args)`` on a CPU and ``default(*args)`` elsewhere.

    XLA chooses when it compiles, so one exported program holds the right implementation for every platform. Within
    `compiled_for`, the choice is made while tracing.

    >>> int(by_platform(1, cpu=lambda x: x + 1, default=lambda x: x + 1))
    2
    """
    known = _KNOWN.get()
    if known is None:
        return jax.lax.platform_dependent(*args, cpu=cpu, default=default)
    return (cpu if known == "cpu" else default)(*args)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """Traces for one platform, ``"cpu"``, ``"tpu"`` or ``"gpu"``: `by_platform` keeps that implementation only.

    Without it, both implementations are in the program until XLA selects one. Under rematerialization this costs
    memory: the backward pass keeps zeros in place of the intermediate values of the implementation that is not
    selected, and these buffers are not shared.

    >>> with compiled_for("tpu"):
    ...     by_platform(1, cpu=lambda x: x + 1, default=lambda x: x + 2)
    3
    """
    token = _KNOWN.set(platform)
    try:
        yield
    finally:
        _KNOWN.reset(token)
