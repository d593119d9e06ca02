"""Which meshes to compare, which plan is best, and the largest batch that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxvision.plan.roofline import Plan


def candidates(devices: Sequence[Any]) -> list[tuple[dict[str, int], bool]]:
    """Returns the meshes of a topology that are worth comparing, each with whether ZeRO-1 splits the optimizer's state.

    Plain data parallelism, ZeRO-1, fully sharded; from 64 chips on also fully sharded along all sides of the grid but
    the first, and data parallelism along that.
    """
    found = [({"data": -1}, False), ({"data": -1}, True), ({"data": 1, "fsdp": -1}, False)]
    sides = [n for n in (len(set(x)) for x in zip(*(device.coords for device in devices), strict=True)) if n > 1]
    if len(devices) >= 64 and len(sides) > 1:
        found.append(({"data": sides[0], "fsdp": math.prod(sides[1:])}, False))
    return found


def best(plans: Sequence[Plan]) -> Plan:
    """Returns the fastest of those that fit, messages in turn with the work; if none does, the smallest."""
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: (plan.in_turn_seconds or 0.0, plan.total))
    return min(plans, key=lambda plan: plan.total)


def largest(used: Callable[[int], float], limit: float, start: int, *, empty: float = 0.0, tries: int = 5) -> int:
    """Returns the largest batch that was seen to fit, 0 if none was. Memory is nearly a line in the batch.

    From 16 on, only multiples of 8 are tried.

    Args:
      used: batch -> bytes; infinite where the compiler does not tell. Each call compiles.
      limit: bytes that there are.
      start: a batch to begin with.
      empty: bytes of no batch at all, about: the state.
      tries: most calls.

    Example:
      >>> tried = []
      >>> largest(lambda batch: tried.append(batch) or 100 + 7 * batch, 1000, 16, empty=90), tried
      (128, [16, 112, 128])
    """
    known: dict[int, float] = {0: empty}
    batch = start
    while batch not in known and len(known) <= tries:
        known[batch] = used(batch)
        low = max((b for b in known if known[b] <= limit), default=0)
        high = min((b for b in known if known[b] > limit), default=None)
        points = sorted((b for b in known if known[b] < math.inf), key=lambda b: abs(known[b] - limit))[:2]
        a, b = points if len(points) == 2 else (0, 0)
        if known[a] != known[b]:
            batch = _round(a + (limit - known[a]) * (a - b) / (known[a] - known[b]))
        else:
            batch = 2 * low or batch // 2
        if high is not None and batch >= high:
            batch = _round((low + high) / 2)
        batch = max(batch, low)
    return max((b for b in known if known[b] <= limit), default=0)


def _round(batch: float) -> int:
    return int(batch) // 8 * 8 if batch >= 16 else max(int(batch), 0)
