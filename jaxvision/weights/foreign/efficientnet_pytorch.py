"""The names of the package efficientnet-pytorch."""

from __future__ import annotations

from collections.abc import Iterator

from jaxvision.weights.foreign.table import Arguments, Library, Row, Shapes, differences
from jaxvision.weights.weight_file import WeightFile


def _stages(shapes: Shapes) -> dict[str, str]:
    """Returns names with timm's number of the stage, the block's number in it and its kind.

    The library numbers all blocks of a model from 0. A stage starts where the number of output channels changes, which
    differs between all neighboring stages. A block that does not expand its input is timm's ``ds``, others are ``ir``.

    >>> shapes = {f"_blocks.{i}._project_conv.weight": (c, 1, 1, 1) for i, c in enumerate([16, 24, 24])}
    >>> list(_stages({**shapes, "_blocks.2._expand_conv.weight": (144, 24, 1, 1)}).values())
    ['ds.blocks.0.0._project_conv.weight', 'ds.blocks.1.0._project_conv.weight',
     'ir.blocks.1.1._project_conv.weight', 'ir.blocks.1.1._expand_conv.weight']
    """
    places: dict[str, str] = {}
    stage, block, number, channels = -1, 0, 0, None
    while (shape := shapes.get(f"_blocks.{number}._project_conv.weight")) is not None:
        stage, block = (stage, block + 1) if shape[:1] == channels else (stage + 1, 0)
        channels = shape[:1]
        kind = "ir" if f"_blocks.{number}._expand_conv.weight" in shapes else "ds"
        places[str(number)] = f"{kind}.blocks.{stage}.{block}"
        number += 1
    names = {}
    for name in shapes:
        start, _, rest = name.partition(".")
        number_, _, rest = rest.partition(".")
        if start == "_blocks" and number_ in places:
            names[name] = f"{places[number_]}.{rest}"
    return names


def _differences(file: WeightFile, arguments: Arguments) -> Iterator[str]:
    """Yields how a model differs from the library's, which pads and normalizes as TensorFlow does."""
    return differences(arguments, padding="same", epsilon=1e-3)


_EFFICIENTNET = Library(
    name="efficientnet-pytorch",
    signature=("_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_blocks.0._project_conv.weight"),
    renumber=_stages,
    differences=_differences,
    rows=(
        Row(r"_conv_stem\.(.+)", r"conv_stem.\1"),
        Row(r"_bn0\.(.+)", r"bn1.\1"),
        Row(r"_conv_head\.(.+)", r"conv_head.\1"),
        Row(r"_bn1\.(.+)", r"bn2.\1"),
        Row(r"_fc\.(.+)", r"classifier.\1"),
        Row(r"ir\.(.+)\._expand_conv\.(.+)", r"\1.conv_pw.\2"),
        Row(r"ir\.(.+)\._bn0\.(.+)", r"\1.bn1.\2"),
        Row(r"..\.(.+)\._depthwise_conv\.(.+)", r"\1.conv_dw.\2"),
        Row(r"ir\.(.+)\._bn1\.(.+)", r"\1.bn2.\2"),
        Row(r"..\.(.+)\._se_(reduce|expand)\.(.+)", r"\1.se.conv_\2.\3"),
        Row(r"ir\.(.+)\._project_conv\.(.+)", r"\1.conv_pwl.\2"),
        Row(r"ir\.(.+)\._bn2\.(.+)", r"\1.bn3.\2"),
        Row(r"ds\.(.+)\._bn1\.(.+)", r"\1.bn1.\2"),
        Row(r"ds\.(.+)\._project_conv\.(.+)", r"\1.conv_pw.\2"),
        Row(r"ds\.(.+)\._bn2\.(.+)", r"\1.bn2.\2"),
    ),
)

LIBRARIES = (_EFFICIENTNET,)
