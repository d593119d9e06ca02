"""Weight files of other libraries: recognized by their names, and read under timm's.

A library is a row of `LIBRARIES`. To add one, state names that only its files contain, and a table from its names to
timm's. Tensors are converted when they are read, one at a time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from jaxvision.errors import UserError
from jaxvision.weights.weight_file import WeightFile

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


class Row(NamedTuple):
    """One row of a table of names.

    Attributes:
      pattern: regular expression that matches a library's name as a whole.
      name: timm's name, as the replacement of `re.sub`. None drops the tensor, which timm's models do not have.
      convert: returns the tensor in timm's layout. Default: unchanged.
      part: position among the tensors that are concatenated to timm's tensor along axis 0, such as the query (0), key
        (1) and value (2) of ``attn.qkv``.
    """

    pattern: str
    name: str | None
    convert: Callable[[np.ndarray], np.ndarray] | None = None
    part: int = 0


class Library(NamedTuple):
    """A library whose weight files are recognized.

    Attributes:
      name: as messages show it.
      signature: names of tensors that each of its files contains, and no file of another library. A prefix of all
        names, such as ``model.``, is found by the first of them and removed.
      rows: the first row that matches a name applies. A name without a row stays as it is, so that loading reports it.
      renumber: returns an intermediate name for names to which the rows then apply; for numbers of blocks that depend
        on the shapes of others. Default: unchanged.
      architectures: shell patterns of timm's architectures that compute the same as the library's models.
    """

    name: str
    signature: tuple[str, ...]
    rows: tuple[Row, ...]
    renumber: Callable[[Shapes], Mapping[str, str]] | None = None
    architectures: tuple[str, ...] = ("*",)


def renamed(file: WeightFile) -> WeightFile:
    """Returns a file under timm's names if it is one of another library, else the file itself.

    Raises:
      UserError: two tensors of the file have the same name in timm.
    """
    for library in LIBRARIES:
        prefix = _find_prefix(file.shapes, library.signature)
        if prefix is not None:
            logger.info("%s: recognized the names of %s", file.path, library.name)
            return ForeignFile(file, library, prefix)
    return file


def _find_prefix(shapes: Shapes, signature: tuple[str, ...]) -> str | None:
    """Returns the prefix with which a file has all names of a signature; None if it does not have them."""
    first = signature[0]
    prefixes = [name.removesuffix(first) for name in shapes if f".{name}".endswith(f".{first}")]
    return next((prefix for prefix in prefixes if all(prefix + name in shapes for name in signature)), None)


class _Part(NamedTuple):
    """A tensor of the file, and how it becomes timm's or a part of it."""

    name: str
    row: Row


class ForeignFile(WeightFile):
    """A weight file of another library, under timm's names.

    Args:
      file: the open file.
      library: its library.
      prefix: the prefix of the library's names in this file. Tensors without it are listed in `unused`.
    """

    def __init__(self, file: WeightFile, library: Library, prefix: str):
        self._file = file
        self.library = library
        self.path, self.metadata = file.path, file.metadata
        shapes = {name.removeprefix(prefix): shape for name, shape in file.shapes.items() if name.startswith(prefix)}
        self.unused = [*(name for name in file.shapes if not name.startswith(prefix)), *file.unused]
        between = {} if library.renumber is None else library.renumber(shapes)
        parts: dict[str, list[_Part]] = {}
        for name in shapes:
            row, target = _find_row(library, between.get(name, name))
            if target is not None:
                parts.setdefault(target, []).append(_Part(prefix + name, row))
        self._parts = {name: sorted(each, key=lambda part: part.row.part) for name, each in parts.items()}
        for name, each in self._parts.items():
            if len({part.row.part for part in each}) < len(each):
                both = " and ".join(repr(part.name) for part in each[:2])
                raise UserError(f"{file.path}: got {both}, which are both timm's {name!r}. Remove one of them.")
        self.shapes = {name: self._shape(each) for name, each in self._parts.items()}
        self.dtypes = {name: file.dtypes[each[0].name] for name, each in self._parts.items()}

    def _shape(self, parts: list[_Part]) -> tuple[int, ...]:
        shapes = []
        for name, row in parts:
            shape = self._file.shapes[name]
            if row.convert is not None:
                # A tensor of another shape than the library's keeps it, and loading reports it.
                with suppress(ValueError, IndexError):
                    shape = row.convert(np.broadcast_to(np.zeros((), np.uint8), shape)).shape
            shapes.append(shape)
        if len(shapes) > 1 and shapes[0]:
            return (sum(shape[0] for shape in shapes if shape), *shapes[0][1:])
        return shapes[0]

    def tensor(self, name: str) -> np.ndarray:
        read = [(self._file.tensor(part.name), part.row.convert) for part in self._parts[name]]
        tensors = [tensor if convert is None else convert(tensor) for tensor, convert in read]
        return tensors[0] if len(tensors) == 1 else np.concatenate(tensors)

    def forget(self, name: str) -> None:
        for part in self._parts[name]:
            self._file.forget(part.name)


def _find_row(library: Library, name: str) -> tuple[Row, str | None]:
    """Returns the row that applies to a name, and timm's name; None for a tensor that is dropped."""
    for row in library.rows:
        found = re.fullmatch(row.pattern, name)
        if found:
            return row, None if row.name is None else found.expand(row.name)
    return Row(name, name), name


def _efficientnet_stages(shapes: Shapes) -> dict[str, str]:
    """Returns names with timm's number of the stage, the block's number in it and its kind.

    The library numbers all blocks of a model from 0. A stage starts where the number of output channels changes, which
    differs between all neighboring stages. A block that does not expand its input is timm's ``ds``, others are ``ir``.

    >>> shapes = {f"_blocks.{i}._project_conv.weight": (c, 1, 1, 1) for i, c in enumerate([16, 24, 24])}
    >>> list(_efficientnet_stages({**shapes, "_blocks.2._expand_conv.weight": (144, 24, 1, 1)}).values())
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


_EFFICIENTNET_PYTORCH = Library(
    name="efficientnet-pytorch",
    signature=("_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_blocks.0._project_conv.weight"),
    renumber=_efficientnet_stages,
    architectures=("tf_efficientnet_*",),  # the library pads as TensorFlow does
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

#: Every library, tried in order.
LIBRARIES = (_EFFICIENTNET_PYTORCH,)
