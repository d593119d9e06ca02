"""Searching the catalog: `list_models` by name, family, license, size and accuracy."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Sequence

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models import registry
from jaxvision.weights.catalog import Entry, entries, lookup

# Name of an order -> the number to sort by, smallest first; None comes last.
SORTS: dict[str, Callable[[Entry], float | None]] = {
    "top1": lambda entry: None if entry.top1 is None else -entry.top1,
    "params": lambda entry: entry.params,
    "macs": lambda entry: entry.macs.get(entry.rated_size),
}


def list_models(
    pattern: str | Sequence[str] = "*",
    *,
    family: str | None = None,
    pretrained: bool = False,
    license: str | None = None,
    max_params: str | float | None = None,
    max_macs: str | float | None = None,
    sort: str = "name",
) -> list[str]:
    """Returns the names of models, including those from `jaxvision.register_model`.

    License, size and accuracy of an architecture are those of its default weights, which
    ``create_model(name, pretrained=True)`` loads. `jaxvision.weights.catalog.lookup` returns the numbers.

    Args:
      pattern: a shell pattern, or several, of which one must match. It applies to the architecture or, with
        `pretrained`, to ``architecture.tag``, where a pattern without a dot matches every tag. Default: all names.
      family: a family such as ``"resnet"``, ``"vit"`` or ``"efficientnet"``. Default: all families.
      pretrained: list ``architecture.tag`` for every published set of weights, instead of architectures.
      license: a shell pattern of the weights' license, such as ``"apache-2.0"`` or ``"cc-*"``. Default: all licenses.
      max_params: largest number of parameters, as a number or a string such as ``"30M"``. Default: no limit.
      max_macs: largest number of multiply-adds per image, as a number or a string such as ``"4G"``. The numbers are
        timm's; where timm has none, `jaxvision.model_info` counts them. They include attention itself. Default: no
        limit.
      sort: ``"name"`` (numbers in names sort as numbers), ``"top1"`` (best published ImageNet-1k accuracy first),
        ``"params"`` or ``"macs"`` (smallest first). Models without the number come last.

    Returns:
      The sorted names.

    Raises:
      UserError: the family, license or order is unknown, or a limit is not a number.

    Example:
      >>> list_models("resnet1*", max_params="15M")
      ['resnet10t', 'resnet14t', 'resnet18', 'resnet18d']
      >>> list_models("deit_*_224", max_params="30M", pretrained=True, sort="top1")[0]
      'deit_small_distilled_patch16_224.fb_in1k'
    """
    if family is not None and family not in registry.families():
        raise unknown_name_error("family", family, registry.families())
    if sort != "name" and sort not in SORTS:
        raise unknown_name_error("sort", sort, ["name", *SORTS])
    rows = {
        name: entry
        for architecture in registry.architectures(family=family)
        for name, entry in _names(architecture, pretrained)
    }
    if license is not None:
        licenses = {entry.license for entry in rows.values() if entry.license}
        matching = fnmatch.filter(licenses, str(license).lower())
        if not matching:
            raise unknown_name_error("license", license, licenses, expected="a license of weights")
        rows = {name: entry for name, entry in rows.items() if entry.published and entry.license in matching}
    for what, limit in (("params", max_params), ("macs", max_macs)):
        if limit is not None:
            most = _parse_number(f"max_{what}", limit)
            rows = {name: e for name, e in rows.items() if (n := SORTS[what](e)) is not None and n <= most}
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    if pretrained:  # as in timm, a pattern without a dot matches every tag
        patterns += [f"{each}.*" for each in patterns if "." not in each]
    names = [name for name in rows if any(fnmatch.fnmatchcase(name, each) for each in patterns)]
    names.sort(key=_natural_order)
    if sort != "name":
        numbers = {name: SORTS[sort](rows[name]) for name in names}
        names.sort(key=lambda name: math.inf if (number := numbers[name]) is None else number)
    return names


def _names(architecture: str, pretrained: bool) -> list[tuple[str, Entry]]:
    if pretrained:
        return [(entry.name, entry) for entry in entries(architecture) if entry.published]
    return [(architecture, lookup(architecture))]


def _parse_number(what: str, value: str | float) -> float:
    """Returns 30e6 for ``"30M"``."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(e\d+)?([KMGBT]?)", str(value).strip().upper().replace("E", "e"))
    if found is None:
        raise UserError(f"{what}: got {value!r}, expected a number such as 30M, 4.1G or 2e9.")
    return float(found[1] + (found[2] or "")) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}[found[3]]


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
