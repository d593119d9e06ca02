"""The classes of ImageNet-1k: a short name and the WordNet identifier of each."""

from __future__ import annotations

import functools
from importlib import resources


def class_names(num_classes: int = 1000) -> tuple[str, ...]:
    """Returns a short name for each class of a published head.

    Args:
      num_classes: width of the head. 1000 means ImageNet-1k, whose classes have the same order in every published
        head. The classes of any other head are numbered.

    Example:
      >>> class_names()[:3], class_names()[134], class_names()[517]
      (('tench', 'goldfish', 'great white shark'), 'crane (bird)', 'crane (machine)')
      >>> class_names(2)
      ('class 0', 'class 1')
    """
    if num_classes == len(_rows()):
        return tuple(name for _, name in _rows())
    return tuple(f"class {label}" for label in range(num_classes))


def synsets() -> tuple[str, ...]:
    """Returns the WordNet identifiers of ImageNet-1k's classes, which are the names of the dataset's folders.

    Example:
      >>> synsets()[0]
      'n01440764'
    """
    return tuple(synset for synset, _ in _rows())


@functools.cache
def _rows() -> tuple[tuple[str, str], ...]:
    text = resources.files(__package__).joinpath("imagenet1k.txt").read_text(encoding="utf-8")
    rows = [line.split(" ", 1) for line in text.splitlines()]
    return tuple((synset, name) for synset, name in rows)
