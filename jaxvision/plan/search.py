"""Chooses the meshes to compare, the best plan, and the largest batch that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxvision.plan.roofline import Plan


def candidate_meshes(devices: Sequence[Any]) -> list[tuple[dict[str, int], bool]]:
    """Returns the meshes that are worth comparing on some devices, each with whether to use ZeRO-1.

    The candidates are data parallelism, ZeRO-1 and ``fsdp`` over all chips. From 64 chips on there is also ``data``
    along the first side of the grid with ``fsdp`` along the others.

    Args:
      devices: from `find_topology` or `find_gpus`.
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


def largest_batch(used: Callable[[int], float], limit: float, start: int, *, empty: float = 0.0, tries: int = 7) -> int:
    """Returns the largest batch that was tried and fits, 0 if none does.

    Memory is nearly the maximum of a constant, which the state and the gradients take with any batch, and a line, which
    begins near `empty`. From 16 on only multiples of 8 are tried.

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
        batch = _next_batch(known, limit)
    return max((b for b in known if known[b] <= limit), default=0)


def _next_batch(known: dict[int, float], limit: float) -> int:
    """Returns the next batch to try; a batch that is already in `known` ends the search."""
    low = max((b for b in known if known[b] <= limit), default=0)
    below, above = sorted(b for b in known if 0 < b < low), sorted(b for b in known if known[b] > limit)

    def crossing(a: int, b: int) -> float:
        """Returns where the line through two batches reaches the limit."""
        rise = known[b] - known[a]
        return b + (limit - known[b]) * (b - a) / rise if 0 < rise < math.inf else math.inf

    if above:
        high = above[0]
        # Batches above the limit are on the slope. The memory between the batches on both sides may have a bend.
        on_slope = min(crossing(0, high), crossing(high, above[1]) if len(above) > 1 else math.inf)
        guess = max(on_slope, crossing(low, high))
        if guess == math.inf or _round_down(guess) >= high:
            guess = (low + high) / 2
    elif below:
        # While the constant is larger, the line from 0 reaches the limit too early, and the line through two batches
        # too late. When they agree, both are on the slope.
        early, late = crossing(0, low), min(crossing(b, low) for b in below)
        guess = late if late <= 1.25 * early else min(max(early, 8 * low), late)
    else:
        guess = crossing(0, low)
        if guess < max(1.5 * low, low + 1):  # it may be the constant that nearly reaches the limit
            guess = 8 * low
    if guess == math.inf:  # the line through `empty` is flat, or falls
        guess = 8 * low
    return max(_round_down(guess), low)


def _round_down(batch: float) -> int:
    return int(batch) // 8 * 8 if batch >= 16 else max(int(batch), 0)
