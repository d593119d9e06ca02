"""The config of a run as tables, with the values that differ from the defaults marked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxvision.report.markup import Markup, join, tag


def config_section(config: Mapping[str, Any] | None, defaults: Mapping[str, Any] | None) -> Markup | None:
    """Returns one table per section of the config and the whole config as JSON, or None if there is no config.

    Args:
      config: sections of keys and values (nested dictionaries or a ConfigDict).
      defaults: default values in the same form; None marks nothing.
    """
    if not config:
        return None
    flat = _flatten(config)
    default = None if defaults is None else _flatten(defaults)
    sections: dict[str, list[Markup]] = {}
    changed = 0
    for key, x in flat.items():
        section, _, name = key.rpartition(".")
        differs = default is not None and (key not in default or default[key] != x)
        changed += differs
        before = tag("s", _literal(default[key])) if default is not None and differs and key in default else None
        cells = [tag("th", name, scope="row"), tag("td", _literal(x), before)]
        sections.setdefault(section, []).append(tag("tr", cells, class_="changed" if differs else None))
    tables = [
        tag("div", tag("h3", section or "run"), tag("table", tag("tbody", rows)), class_="block")
        for section, rows in sections.items()
    ]
    lead = None
    if default is not None:
        text = f"{changed} of {len(flat)} values differ from their defaults, which are crossed out."
        lead = tag("p", text, class_="lead")
    whole = json.dumps(to_dictionary(config), indent=2, default=str, ensure_ascii=False)
    details = tag("details", tag("summary", "as JSON"), tag("pre", whole))
    return join([lead, tag("div", tables, class_="blocks"), details])


def to_dictionary(x: Any) -> Any:
    """Returns a config as nested plain dictionaries; values are unchanged."""
    items = _items(x)
    return x if items is None else {str(key): to_dictionary(inner) for key, inner in items.items()}


def _items(x: Any) -> Mapping[str, Any] | None:
    """Returns a section of a config as a dictionary, or None if `x` is a value."""
    if isinstance(x, Mapping):
        return x
    return x.to_dict() if hasattr(x, "to_dict") else None  # ConfigDict


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, x in (_items(config) or {}).items():
        if _items(x):
            flat |= _flatten(x, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = to_dictionary(x)
    return flat


def _literal(x: Any) -> str:
    if isinstance(x, str) and x:
        return x
    if isinstance(x, float):
        return f"{x:g}" if float(f"{x:g}") == x else repr(x)
    return repr(x)
