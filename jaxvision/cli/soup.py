"""``jaxvision soup``: one model whose weights are the average of those of several runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jaxvision.cli.arguments import (
    add_overwrite_argument,
    check_is_no_workdir,
    check_outputs,
    path_argument,
    warn,
)
from jaxvision.cli.data import add_run_data_arguments, evaluation_options, run_configs, source_options, training_images
from jaxvision.errors import UserError

if TYPE_CHECKING:
    from jaxvision.report import Console
    from jaxvision.run.soup import SoupData

HELP = "average the weights of runs that started from the same weights"
EXAMPLES = """A soup predicts in the time of one model. Its BatchNorm statistics are measured again on training data,
unless they are the same in all runs. A table compares the runs, their ensemble and the soup on the test data, or on
the validation data if there are no test data.

examples:
  jaxvision soup runs/a runs/b runs/c -o soup            # the average of all
  jaxvision soup runs/a runs/b runs/c -o soup --greedy   # adds a run only if the validation accuracy does not fall
  jaxvision soup runs/a -o soup --wise 0.5               # halfway from its starting weights to runs/a (WiSE-FT)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision soup``."""
    parser.add_argument(
        "model",
        nargs="+",
        type=path_argument,
        metavar="RUN",
        help="workdirs of finished runs, or folders in timm's format",
    )
    parser.add_argument(
        "--output",
        "-o",
        required=True,
        type=path_argument,
        metavar="FOLDER",
        help="folder for the soup, in timm's format",
    )
    parser.add_argument(
        "--greedy",
        action="store_true",
        help="add one run after the other, the best first, and keep those that do not lower the top-1 accuracy on the "
        "validation data",
    )
    parser.add_argument(
        "--wise",
        metavar="ALPHA|sweep",
        help="average a single run with the weights that it started from, which get the share 1 - ALPHA. sweep: the "
        "best of 0, 0.1, ..., 1 by the top-1 accuracy on the validation data",
    )
    add_run_data_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    add_overwrite_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes the soup, and prints the table."""
    from jaxvision import report
    from jaxvision.classifier import load_classifier, save_classifier
    from jaxvision.parallel.accelerators import check_accelerator
    from jaxvision.run.soup import average_runs, average_with_origin, compare

    check_accelerator(warn)
    alpha = _alpha(arguments)
    output = Path(arguments.output)
    check_is_no_workdir(output)
    check_outputs([output / "model.safetensors", output / "config.json"], arguments)
    models = arguments.model
    members = [load_classifier(model) for model in models]
    with report.Console() as console:
        data = _open_data(arguments, console)
        if arguments.wise is not None:
            name, result = average_with_origin(models[0], members[0], alpha, data, log=console.note)
        else:
            name, result = average_runs(models, members, data, greedy=arguments.greedy, log=console.note)
        save_classifier(output, result)
        if data is not None and data.final_split is not None:
            console.table(data.final_split, compare(models, members, name, result, data, log=console.note))
        console.note(f"{output}: {name}, in timm's format")


def _alpha(arguments: argparse.Namespace) -> float | None:
    """Returns the number of ``--wise``; None without it, or for a sweep."""
    if arguments.wise is None:
        if len(arguments.model) == 1:
            raise UserError("RUN: got one run, expected two or more, or --wise with one.")
        return None
    if arguments.greedy or len(arguments.model) > 1:
        raise UserError("--wise: got --greedy or several runs, expected a single run. Pass one run at a time.")
    if arguments.wise == "sweep":
        return None
    try:
        alpha = float(arguments.wise)
    except ValueError:
        alpha = -1.0
    if not 0 <= alpha <= 1:
        raise UserError(f"--wise: got {arguments.wise!r}, expected a number from 0 to 1, or sweep.")
    return alpha


def _open_data(arguments: argparse.Namespace, console: Console) -> SoupData | None:
    """Returns the data that the arguments name, or else those of the runs; None if there are none."""
    from jaxvision.eval.evaluate import trained_on_text
    from jaxvision.run.recorded import recorded_config
    from jaxvision.run.sections import without_none
    from jaxvision.run.soup import SoupData, open_splits

    if arguments.data is None and not any(map(recorded_config, arguments.model)):
        return None
    configs = run_configs(arguments)
    config = next(iter(configs), None)
    try:
        splits = open_splits(arguments.data, config, source_options(arguments, ("name",)))
    except UserError as e:
        if arguments.data is not None:
            raise
        text = f"cannot open the data of the runs ({e}) Add --option data_dir=FOLDER if they are elsewhere, or --data."
        if arguments.greedy or arguments.wise == "sweep":
            raise UserError(f"{'--greedy' if arguments.greedy else '--wise sweep'}: {text}") from e
        console.warn(f"the soup is not compared with the runs: {text}")
        return None
    trained_on = training_images(arguments.data, [without_none(each.source) for each in configs])
    for split in ("validation", "test"):
        if getattr(splits, split) is not None:
            for text in trained_on_text(splits.split(split), trained_on):
                console.warn(f"{split} data: {text}")
    return SoupData(splits, evaluation_options(config) | {"batch_size": arguments.batch_size})
