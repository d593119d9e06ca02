"""``jaxvision evaluate``: the metrics of a model on a dataset."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Collection, Sequence
from typing import Any

from jaxvision.cli.arguments import add_model_arguments, load_model, path_argument, warn
from jaxvision.errors import UserError

HELP = "evaluate a model on a dataset: accuracy, loss, calibration error and mistakes"
EXAMPLES = """examples:
  jaxvision evaluate --model runs/mine --data images/test --report runs/mine-test
  jaxvision evaluate --model runs/cifar10 --data tfds --option dataset=cifar10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision evaluate``."""
    add_model_arguments(parser)
    parser.add_argument(
        "--data",
        required=True,
        type=path_argument,
        metavar="FOLDER|SOURCE",
        help="a folder with one subfolder per class, or a source such as digits or tfds",
    )
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the source, such as dataset=cifar10 or data_dir=FOLDER; may be repeated",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    parser.add_argument(
        "--report", type=path_argument, metavar="FOLDER", help="write report.html and mistakes.csv to this folder"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints the metrics, as a table or as JSON."""
    from jaxvision.eval.evaluate import evaluate
    from jaxvision.models.registry import keyword_parameters
    from jaxvision.parallel.accelerators import check_accelerator

    check_accelerator(warn)
    options = _source_options(arguments.option, keyword_parameters(evaluate))
    result = evaluate(
        load_model(arguments),
        arguments.data,
        split=arguments.split,
        batch_size=arguments.batch_size,
        report_dir=arguments.report,
        quiet=arguments.json,
        **options,
    )
    if arguments.json:
        print(json.dumps(result))


def _source_options(texts: Sequence[str], reserved: Collection[str]) -> dict[str, Any]:
    """Returns the options of a source; `reserved` are the names that are none."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--option: got {text!r}, expected KEY=VALUE.")
        if key in reserved:
            raise UserError(
                f"--option: got {key!r}, expected an option of the source. "
                "Run `jaxvision evaluate --help` for the other arguments."
            )
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a string without quotes
            options[key] = path_argument(value)
    return options
