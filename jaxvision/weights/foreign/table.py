"""The table of a library: from its names to timm's, with the conversion of each tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvision.weights.weight_file import WeightFile

Shapes = Mapping[str, tuple[int, ...]]
#: The arguments of a model's class, including defaults.
Arguments = Mapping[str, Any]


class Row(NamedTuple):
    """One row of a table of names.

    Attributes:
      pattern: regular expression that matches a library's name as a whole.
      name: timm's name, as the replacement of `re.sub`: a template or a function of the match. None drops the tensor,
        unless an earlier row matches.
      convert: returns the tensor in timm's layout. Default: unchanged.
      part: position among the tensors that are joined to timm's tensor, such as the query (0), key (1) and value (2) of
        ``attn.qkv``.
      is_added: whether the parts are added to each other instead of concatenated along axis 0.
    """

    pattern: str
    name: str | Callable[[re.Match[str]], str] | None
    convert: Callable[[np.ndarray], np.ndarray] | None = None
    part: int = 0
    is_added: bool = False


class Library(NamedTuple):
    """A library whose weight files are recognized, or one of its models.

    Attributes:
      name: as messages show it.
      signature: tensors that each of its files contains and no file of another library does. A prefix of all names,
        such as ``model.``, is found by the first of them and removed.
      rows: every row that matches a name applies, so a tensor may become several. A name without a row stays as it is,
        so that loading reports it.
      modules: modules that contain all tensors of the signature, such as ``vit.``, but not others of the model, such as
        its head. Their names are removed.
      stacked: the prefix of tensors that hold one slice for each block along axis 0, and the prefix of the slices as a
        format string, such as ``("encoderblock.", "encoderblock_{}.")``.
      renumber: returns an intermediate name for names to which the rows then apply; for numbers of blocks that depend
        on the shapes of others. Default: unchanged.
      differences: yields how the library's model differs from one of ours with the same weights, as `differences`
        does. Default: not at all.
      mean: of each channel, by which the library's published weights expect images to be normalized. Default: it
        differs between its files.
      refusal: why there is no such model here, and what to do; None if there is one.
    """

    name: str
    signature: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    modules: tuple[str, ...] = ()
    stacked: tuple[str, str] | None = None
    renumber: Callable[[Shapes], Mapping[str, str]] | None = None
    differences: Callable[[WeightFile, Arguments], Iterator[str]] | None = None
    mean: tuple[float, ...] | None = None
    refusal: str | None = None


def differences(arguments: Arguments, **computed: Any) -> Iterator[str]:
    """Yields, for each argument with another value, the difference and the remedy, to follow the name of the file.

    Args:
      arguments: those of the model.
      **computed: the values with which a library computes. Arguments that the model does not have are skipped.

    >>> list(differences({"epsilon": 1e-05}, epsilon=0.001))
    ['was trained with epsilon=0.001, but the model computes with 1e-05. Build the model with epsilon=0.001.']
    """
    for name, value in computed.items():
        if name in arguments and arguments[name] != value:
            yield (
                f"was trained with {name}={value!r}, but the model computes with {arguments[name]!r}. Build the model "
                f"with {name}={value!r}."
            )


def find_targets(library: Library, name: str) -> list[tuple[Row, str]]:
    """Returns the rows that apply to a name, each with timm's name; none for a tensor that is dropped."""
    found: list[tuple[Row, str]] = []
    for row in library.rows:
        match = re.fullmatch(row.pattern, name)
        if match is None:
            continue
        if row.name is None:
            return found
        found.append((row, row.name(match) if callable(row.name) else match.expand(row.name)))
    return found or [(Row(name, name), name)]


def with_batch_axis(tensor: np.ndarray) -> np.ndarray:
    """Returns [n, d] as [1, n, d], and [d] as [1, 1, d]: the layout of timm's tokens and positions."""
    return tensor.reshape(1, -1, tensor.shape[-1])


def zero_bias(kernel: np.ndarray) -> np.ndarray:
    """Returns the bias of a projection [out, in] without one."""
    return np.zeros(kernel.shape[0], kernel.dtype)
