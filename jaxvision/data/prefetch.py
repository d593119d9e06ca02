"""Batches on the devices before the step needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

#: Number of batches that wait on the devices while another one is used.
AHEAD = 2


def prefetch(batches: Iterable[T], place: Callable[[T], Any], *, ahead: int = AHEAD) -> Generator[Any, None, None]:
    """Yields ``place(batch)`` for each batch, called `ahead` batches before it is needed.

    Placing a batch on a device returns before the copy has finished, so the copy overlaps with the steps on earlier
    batches. Closing the generator closes `batches`.

    >>> list(prefetch(range(4), lambda x: 10 * x))
    [0, 10, 20, 30]
    """
    waiting: deque[Any] = deque()
    try:
        for batch in batches:
            waiting.append(place(batch))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:  # popped before it is yielded, so that its memory is freed after use
            yield waiting.popleft()
    finally:
        if hasattr(batches, "close"):
            batches.close()
