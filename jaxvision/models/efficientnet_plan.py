"""The shapes of an EfficientNet's blocks, computed from a table of stages.

A table has one or several `Row`s for each stage. `repeat_rows` returns a row for each block, and `plan_blocks` computes
the shape of each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxvision.models.layers import drop
from jaxvision.models.layers.width import make_divisible


@dataclass(frozen=True)
class Row:
    """A stage of identical blocks, or a part of a stage.

    Attributes:
      block: a key of `BLOCKS`.
      repeats: number of blocks, before the network's depth factor.
      kernel: side of the spatial convolution's kernel. With several sides, each applies to a part of the channels
        (MixConv).
      stride: stride of the first block of the stage. The other blocks have stride 1.
      features: channels of the output, before the network's width factor.
      expand: expansion ratio, the inner channels per input channel of a block.
      squeeze_excite: hidden width of squeeze-and-excitation as a fraction of the block's input channels; 0 for none.
      shortcut: whether blocks whose input and output have the same shape have a shortcut.
      activation: a key of `ACTIVATIONS`. None: the network's.
      splits: number of convolutions that replace the 1x1 convolution before, and the one after, the spatial convolution
        (MixConv).
      experts: number of kernels that are mixed for each image (CondConv).
      group_size: channels per group of the spatial convolution. None: the network's.
      expand_from: channels, before the width factor, that `expand` multiplies. None: the block's input.
      space_to_depth: whether the first block begins with a 2x2 convolution of stride 2 that multiplies the channels by
        four. The next block with a stride divides them by four instead of striding.
    """

    block: str
    repeats: int
    kernel: int | tuple[int, ...]
    stride: int
    features: int
    expand: float = 1.0
    squeeze_excite: float = 0.0
    shortcut: bool = True
    activation: str | None = None
    splits: tuple[int, int] = (1, 1)
    experts: int = 0
    group_size: int | None = None
    expand_from: int | None = None
    space_to_depth: bool = False


Stage = Row | tuple[Row, ...]
Pruned = Sequence[tuple[int, Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Shape:
    """The shape of one block.

    Attributes:
      block: a key of `BLOCKS`.
      kernel: as in `Row`.
      stride: stride of the spatial convolution.
      in_features: channels of the input.
      inner: channels that the spatial convolution takes; in a fused block, channels that the last convolution takes.
      features: channels of the output.
      hidden: hidden width of squeeze-and-excitation; 0 for none.
      groups: number of groups of the spatial convolution.
      shortcut: whether the input is added to the output.
      activation: a key of `ACTIVATIONS`.
      splits: as in `Row`.
      experts: as in `Row`.
      drop_path: stochastic depth rate, if there is a shortcut.
    """

    block: str
    kernel: int | tuple[int, ...]
    stride: int
    in_features: int
    inner: int
    features: int
    hidden: int
    groups: int
    shortcut: bool
    activation: str
    splits: tuple[int, int]
    experts: int
    drop_path: float

    @property
    def reduction(self) -> int:
        """The side of the input map divided by the side of the output map."""
        return 2 if self.block == "s2d" else self.stride


def plan_blocks(
    stages: Sequence[Sequence[Row]],
    in_features: int,
    *,
    scaled: Callable[[int], int],
    hidden_width: Callable[[float], int],
    activation: str,
    group_size: int | None,
    drop_path: float,
    pruned: Pruned | None,
) -> list[list[Shape]]:
    """Returns the shapes of the blocks of each stage.

    Args:
      stages: for each stage, a row for each block.
      in_features: channels of the stem's output.
      scaled: function from a row's channels to the network's.
      hidden_width: function that rounds the hidden width of squeeze-and-excitation.
      activation: as for `EfficientNet`.
      group_size: as for `EfficientNet`.
      drop_path: as for `EfficientNet`.
      pruned: as for `EfficientNet`.
    """
    rates = iter(drop.rates(drop_path, sum(map(len, stages)), reaches_total=False))
    spread = 1  # factor of the channels: 4 between space-to-depth and the next stride
    shapes: list[list[Shape]] = []
    for s, rows in enumerate(stages):
        shapes.append([])
        for i, row in enumerate(rows):
            stride, expand = row.stride if i == 0 else 1, row.expand
            starts = row.space_to_depth and spread == 1
            if starts:
                spread = 4
            elif spread == 4 and stride == 2:
                spread, stride, expand = 1, 1, expand / 4
            features = scaled(row.features) * spread
            source = in_features * (4 if starts else 1)
            expanded = scaled(row.expand_from) if row.expand_from else source
            inner = source if row.block in ("ds", "dsa") else make_divisible(expanded * expand)
            # `squeeze_excite` is relative to the block's input, not to the expanded channels.
            share = row.squeeze_excite / expand / (4 if starts else 1)
            hidden = hidden_width(inner * share) if share else 0
            if pruned is not None:
                features, inner, hidden = pruned[s][0], pruned[s][1][i], pruned[s][2][i]
            per_group = row.group_size or group_size
            if row.block in ("er", "cn"):  # dense by default
                groups = (inner if row.block == "er" else in_features) // per_group if per_group else 1
            else:
                groups = inner // (per_group or 1)
            shapes[-1].append(
                Shape(
                    block="s2d" if starts else row.block,
                    kernel=row.kernel,
                    stride=stride,
                    in_features=in_features,
                    inner=inner,
                    features=features,
                    hidden=hidden,
                    groups=groups,
                    shortcut=row.shortcut and not starts and stride == 1 and in_features == features,
                    activation=row.activation or activation,
                    splits=row.splits,
                    experts=row.experts,
                    drop_path=next(rates),
                )
            )
            in_features = features
    return shapes


def repeat_rows(stage: Stage, factor: float, *, nearest: bool = False) -> list[Row]:
    """Returns a row for each block of a stage whose depth is multiplied by a factor.

    Args:
      stage: one or several rows.
      factor: multiplier of the number of blocks.
      nearest: round the number to the nearest integer instead of up.

    >>> rows = repeat_rows((Row("ir", 1, 5, 2, 40), Row("ir", 3, 3, 1, 40)), 1.1)
    >>> [row.kernel for row in rows]
    [5, 3, 3, 3, 3]
    """
    rows = (stage,) if isinstance(stage, Row) else stage
    old = sum(row.repeats for row in rows)
    new = max(1, round(old * factor)) if nearest else math.ceil(old * factor)
    counts = []
    for row in reversed(rows):  # as in timm, the first row gets the remainder
        counts.append(max(1, round(row.repeats / old * new)))
        old, new = old - row.repeats, new - counts[-1]
    return [row for row, n in zip(rows, reversed(counts), strict=True) for _ in range(n)]
