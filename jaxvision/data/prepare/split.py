"""The examples of one split, before they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Split(NamedTuple):
    """The examples of one split.

    Attributes:
      name: as TFDS names it.
      keys: one for each example, the same as those of TFDS, which order the examples.
      example: returns the features of example i, in any form that TFDS encodes: a file or a Pillow image for an image,
        a name or a number for a label. It may return more features than the dataset has.
    """

    name: str
    keys: Sequence[str | int]
    example: Callable[[int], dict[str, Any]]
