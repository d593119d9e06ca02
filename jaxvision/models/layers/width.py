"""Channel counts that hardware likes."""

from __future__ import annotations


def make_divisible(value: float, divisor: int = 8, *, round_limit: float = 0.9) -> int:
    """Returns the multiple of `divisor` nearest to `value`, at least one of them.

    Args:
      value: the width that was wanted.
      divisor: what the width must be divisible by.
      round_limit: the next multiple is taken where rounding would leave less than this share of `value`.

    Example:
      >>> make_divisible(32 * 1.1), make_divisible(17.4), make_divisible(17.9), make_divisible(17.9, round_limit=0.0)
      (32, 16, 24, 16)
    """
    width = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return width + divisor if width < round_limit * value else width
