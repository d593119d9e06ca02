"""``jaxvision list``: a table of models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvision.errors import UserError

HELP = "list models with their size, cost, accuracy and license"
EXAMPLES = """examples:
  jaxvision list 'vit_*' --max-params 30M --sort top1
  jaxvision list --pretrained --license apache-2.0 --max-macs 2G"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision list``."""
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of names, such as 'vit_*'")
    parser.add_argument("--family", help="only this family: resnet, resnetv2, vit or efficientnet")
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="one row per set of weights, name.tag (default: one row per architecture, for its default weights)",
    )
    parser.add_argument(
        "--license", help="only weights with this license; a shell pattern, such as apache-2.0 or 'cc-*'"
    )
    parser.add_argument("--max-params", metavar="N", help="only models with at most N parameters, such as 30M")
    parser.add_argument(
        "--max-macs",
        metavar="N",
        help="only models with at most N multiply-adds per image, such as 4G (as timm publishes them, else counted)",
    )
    parser.add_argument("--sort", default="name", metavar="BY", help="name, top1, params or macs (default: name)")
    parser.add_argument("--json", action="store_true", help="print JSON, one list of objects")


def run(arguments: argparse.Namespace) -> None:
    """Prints the models that the arguments select."""
    from jaxvision.weights import catalog, listing

    names = listing.list_models(
        arguments.pattern,
        family=arguments.family,
        pretrained=arguments.pretrained,
        license=arguments.license,
        max_params=arguments.max_params,
        max_macs=arguments.max_macs,
        sort=arguments.sort,
    )
    rows = [_row(name, catalog.lookup(name)) for name in names]
    if arguments.json:
        print(json.dumps(rows))
    elif rows:
        print(_table(rows))
    else:
        raise UserError(
            f"no model matches {arguments.pattern!r} and the other arguments. Run `jaxvision list` to list all models."
        )


def _row(name: str, entry: Any) -> dict[str, Any]:
    from jaxvision.weights import packages

    return {
        "name": name,
        "parameters": entry.params,
        "multiply_adds": entry.macs.get(entry.rated_size),
        "image_size": entry.rated_size,
        "top1": entry.top1,
        "top5": entry.top5,
        "license": entry.license if entry.published else None,
        "weights": entry.name if entry.published else None,
        "installed": entry.published and packages.find(entry.name) is not None,
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'name':{width}} {'params M':>9} {'MACs G':>8} {'size':>5} {'top-1':>7} {'top-5':>7}  license"]
    for row in rows:
        millions, billions = _number(row["parameters"], 1e6, 2), _number(row["multiply_adds"], 1e9, 2)
        top1, top5 = _number(row["top1"], 1, 3), _number(row["top5"], 1, 3)
        license = row["license"] or ("" if row["weights"] else "no weights")
        license += ", installed" if row["installed"] else ""
        line = f"{row['name']:{width}} {millions:>9} {billions:>8} {row['image_size']:5} {top1:>7} {top5:>7}  {license}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _number(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"
