"""Rounding of channel counts."""

from __future__ import annotations


def make_divisible(value: float, divisor: int = 8, *, round_limit: float = 0.9) -> int:
    """Returns `value` rounded to a multiple of `divisor`, at least `divisor`.

    Args:
      value: the desired number of channels.
      divisor: the result is a multiple of it.
      round_limit: round up instead if the result would be less than this fraction of `value`.

    Example:
      >>> make_divisible(32 * 1.1), make_divisible(17.4), make_divisible(17.9), make_divisible(17.9, round_limit=0.0)
      (32, 16, 24, 16)
    """
    width = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return width + divisor if width < round_limit * value else width
