"""A weight file of another library, read under timm's names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from jaxvision.errors import UserError
from jaxvision.weights.foreign.table import Library, Row, Shapes, find_targets
from jaxvision.weights.weight_file import WeightFile


class Prefix(NamedTuple):
    """The prefix of a library's names in a file.

    Attributes:
      outer: the prefix of all names of the model.
      module: the further prefix of those in one of the library's `modules`.
    """

    outer: str
    module: str


def find_prefix(shapes: Shapes, library: Library) -> Prefix | None:
    """Returns the prefix with which a file has all names of a library's signature; None if it does not have them."""
    first = library.signature[0]
    prefixes = [name.removesuffix(first) for name in shapes if f".{name}".endswith(f".{first}")]
    for prefix in prefixes:
        if all(prefix + name in shapes for name in library.signature):
            module = next((each for each in library.modules if f".{prefix}".endswith(f".{each}")), "")
            return Prefix(prefix.removesuffix(module), module)
    return None


class _Part(NamedTuple):
    """A tensor of the file, or a slice of one, and how it becomes timm's or a part of it."""

    name: str
    block: int | None
    row: Row


class ForeignFile(WeightFile):
    """A weight file of another library, under timm's names.

    Args:
      file: the open file.
      library: its library.
      prefix: the prefix of the library's names in this file. Tensors without it, and tensors that timm's models do not
        have, are listed in `unused`.

    Raises:
      UserError: two tensors of the file have the same name in timm.
    """

    def __init__(self, file: WeightFile, library: Library, prefix: Prefix):
        self._file = file
        self.origin = library
        self.path, self.metadata = file.path, file.metadata
        sources = dict(_sources(file.shapes, library, prefix))
        shapes = {name: file.shapes[full][block is not None :] for name, (full, block) in sources.items()}
        between = {} if library.renumber is None else library.renumber(shapes)
        parts: dict[str, list[_Part]] = {}
        for name, source in sources.items():
            for row, target in find_targets(library, between.get(name, name)):
                parts.setdefault(target, []).append(_Part(*source, row))
        self._parts = {name: sorted(each, key=lambda part: part.row.part) for name, each in parts.items()}
        for name, each in self._parts.items():
            if len({part.row.part for part in each}) < len(each):
                both = " and ".join(repr(part.name) for part in each[:2])
                raise UserError(f"{file.path}: got {both}, which are both timm's {name!r}. Remove one of them.")
        used = {part.name for each in self._parts.values() for part in each}
        self.unused = [*(name for name in file.shapes if name not in used), *file.unused]
        self.shapes = {name: self._shape(each) for name, each in self._parts.items()}
        self.dtypes = {name: file.dtypes[each[0].name] for name, each in self._parts.items()}

    def _shape(self, parts: list[_Part]) -> tuple[int, ...]:
        shapes = []
        for name, block, row in parts:
            shape = self._file.shapes[name][block is not None :]
            if row.convert is not None:
                # A tensor of another shape than the library's keeps it, and loading reports it.
                with suppress(ValueError, IndexError):
                    shape = row.convert(np.broadcast_to(np.zeros((), np.uint8), shape)).shape
            shapes.append(shape)
        if len(shapes) > 1 and shapes[0] and not parts[0].row.is_added:
            return (sum(shape[0] for shape in shapes if shape), *shapes[0][1:])
        return shapes[0]

    def tensor(self, name: str) -> np.ndarray:
        tensors = []
        for full, block, row in self._parts[name]:
            tensor = self._file.tensor(full)
            tensor = tensor if block is None else tensor[block]
            tensors.append(tensor if row.convert is None else row.convert(tensor))
        if len(tensors) == 1:
            return tensors[0]
        if self._parts[name][0].row.is_added:
            return np.sum([tensor.astype(np.float32) for tensor in tensors], axis=0)
        return np.concatenate(tensors)

    def forget(self, name: str) -> None:
        for part in self._parts[name]:
            self._file.forget(part.name)


def _sources(shapes: Shapes, library: Library, prefix: Prefix) -> Iterator[tuple[str, tuple[str, int | None]]]:
    """Yields a library's names, each with the name of its tensor in the file and the number of its slice."""
    for full, shape in shapes.items():
        if not full.startswith(prefix.outer):
            continue
        name = full.removeprefix(prefix.outer).removeprefix(prefix.module)
        if library.stacked is not None and name.startswith(library.stacked[0]) and shape:
            for i in range(shape[0]):
                yield library.stacked[1].format(i) + name.removeprefix(library.stacked[0]), (full, i)
        else:
            yield name, (full, None)
