"""Chooses the meshes to compare, the best plan, and the largest batch that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxvision.plan.roofline import Plan


def candidate_meshes(devices: Sequence[Any]) -> list[tuple[dict[str, int], bool]]:
    """Returns the meshes that are worth comparing on a TPU topology, each with whether to use ZeRO-1.

    The candidates are data parallelism, ZeRO-1 and ``fsdp`` over all chips. From 64 chips on there is also ``data``
    along the first side of the grid with ``fsdp`` along the others.

    Args:
      devices: the devices of a topology, from `find_topology`.
    """
    candidates = [({"data": -1}, False), ({"data": -1}, True), ({"data": 1, "fsdp": -1}, False)]
    sides = [n for n in (len(set(x)) for x in zip(*(device.coords for device in devices), strict=True)) if n > 1]
    if len(devices) >= 64 and len(sides) > 1:
        candidates.append(({"data": sides[0], "fsdp": math.prod(sides[1:])}, False))
    return candidates


def choose_best(plans: Sequence[Plan]) -> Plan:
    """Returns the fastest plan that fits, if computation waits for every collective; the smallest plan if none fits."""
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: (plan.seconds_without_overlap or 0.0, plan.total))
    return min(plans, key=lambda plan: plan.total)


def largest_batch(used: Callable[[int], float], limit: float, start: int, *, empty: float = 0.0, tries: int = 5) -> int:
    """Returns the largest batch that was tried and fits, 0 if none does.

    Interpolates linearly, because memory is nearly linear in the batch. From 16 on only multiples of 8 are tried.

    Args:
      used: batch -> bytes, infinite where the compiler does not say. Each call compiles.
      limit: bytes available.
      start: the first batch to try.
      empty: approximate bytes without any image: the state.
      tries: maximum number of calls of `used`.

    Example:
      >>> tried = []
      >>> largest_batch(lambda batch: tried.append(batch) or 100 + 7 * batch, 1000, 16, empty=90), tried
      (128, [16, 112, 128])
    """
    known: dict[int, float] = {0: empty}
    batch = start
    while batch not in known and len(known) <= tries:
        known[batch] = used(batch)
        batch = _next_batch(known, limit, batch)
    return max((b for b in known if known[b] <= limit), default=0)


def _next_batch(known: dict[int, float], limit: float, batch: int) -> int:
    """Returns the next batch to try after `batch`; a batch that is already in `known` ends the search."""
    low = max((b for b in known if known[b] <= limit), default=0)
    high = min((b for b in known if known[b] > limit), default=None)
    points = sorted((b for b in known if known[b] < math.inf), key=lambda b: abs(known[b] - limit))[:2]
    a, b = points if len(points) == 2 else (0, 0)
    if known[a] != known[b]:
        batch = _round_down(a + (limit - known[a]) * (a - b) / (known[a] - known[b]))
    else:
        batch = 2 * low or batch // 2
    if high is not None and batch >= high:
        batch = _round_down((low + high) / 2)
    return max(batch, low)


def _round_down(batch: float) -> int:
    return int(batch) // 8 * 8 if batch >= 16 else max(int(batch), 0)
