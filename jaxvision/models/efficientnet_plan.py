"""How the shapes of an EfficientNet's blocks follow from a table of stages.

A table has one or several `Row`s for each stage. `repeated` makes a row for each block, and `plan` works out the shape of
each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxvision.models.layers import drop
from jaxvision.models.layers.width import make_divisible


@dataclass(frozen=True)
class Row:
    """Blocks of one kind, of which the first may stride: a stage, or a part of one.

    Attributes:
      block: a key of `BLOCKS`.
      repeats: how many, before the network's depth factor.
      kernel: side of the spatial convolution; of several sides each has its share of the channels (MixConv).
      stride: of the first block, if it is the first of its stage.
      features: channels of the output, before the network's width factor.
      expand: how many times wider than its input a block is inside.
      squeeze_excite: hidden width of squeeze-and-excitation as a share of the block's input; 0 for none.
      shortcut: False leaves shortcuts away where shapes would allow them.
      activation: a key of `ACTIVATIONS` in the place of the network's.
      splits: into how many convolutions the 1x1 before and the 1x1 after the spatial convolution are split (MixConv).
      experts: among how many kernels each image chooses (CondConv).
      group_size: channels of a group of the spatial convolution, in the place of the network's.
      expand_from: channels, before the width factor, that `expand` counts from in the place of the input's.
      space_to_depth: a 2x2 convolution of stride 2 goes first and makes four channels of one. It stays so until the
        next block that strides; that one does not stride, and takes the channels back.
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
    """One block, all of its numbers worked out.

    Attributes:
      block: a key of `BLOCKS`.
      kernel: see `Row`.
      stride: of the spatial convolution.
      in_features: channels of the input.
      inner: channels of what the spatial convolution, or in a fused block the last one, sees.
      features: channels of the output.
      hidden: width within squeeze-and-excitation; 0 for none.
      groups: of the spatial convolution.
      shortcut: whether the input is added to the output.
      activation: a key of `ACTIVATIONS`.
      splits: see `Row`.
      experts: see `Row`.
      drop_path: probability of dropping the branch beside a shortcut in training.
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
        """Side of the input's image over that of the output's."""
        return 2 if self.block == "s2d" else self.stride


def plan(
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
      stages: a row for each block.
      in_features: channels that the stem puts out.
      scaled: from a row's channels to the network's.
      hidden_width: from the width wanted within squeeze-and-excitation to a whole number.
      activation: see `EfficientNet`.
      group_size: see `EfficientNet`.
      drop_path: see `EfficientNet`.
      pruned: see `EfficientNet`.
    """
    rates = iter(drop.rates(drop_path, sum(map(len, stages)), last_gets_all=False))
    spread = 1  # 4 between space-to-depth and the next stride
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
            # Of the block's input, not of the expanded channels.
            share = row.squeeze_excite / expand / (4 if starts else 1)
            hidden = hidden_width(inner * share) if share else 0
            if pruned is not None:
                features, inner, hidden = pruned[s][0], pruned[s][1][i], pruned[s][2][i]
            per_group = row.group_size or group_size
            if row.block in ("er", "cn"):  # dense, unless told otherwise
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


def repeated(stage: Stage, factor: float, *, nearest: bool = False) -> list[Row]:
    """Returns a row for each block of a stage that is `factor` times as deep, rounded up or to the nearest.

    >>> rows = repeated((Row("ir", 1, 5, 2, 40), Row("ir", 3, 3, 1, 40)), 1.1)
    >>> [row.kernel for row in rows]
    [5, 3, 3, 3, 3]
    """
    rows = (stage,) if isinstance(stage, Row) else stage
    old = sum(row.repeats for row in rows)
    new = max(1, round(old * factor)) if nearest else math.ceil(old * factor)
    counts = []
    for row in reversed(rows):  # what rounding leaves falls to the first, which is least in need of repetition
        counts.append(max(1, round(row.repeats / old * new)))
        old, new = old - row.repeats, new - counts[-1]
    return [row for row, n in zip(rows, reversed(counts), strict=True) for _ in range(n)]
