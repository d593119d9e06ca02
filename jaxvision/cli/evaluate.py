"""``jaxvision evaluate``: the metrics of a model on a dataset."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvision.cli.arguments import (
    add_model_arguments,
    add_overwrite_argument,
    add_tta_argument,
    check_outputs,
    load_ensemble,
    path_argument,
    warn,
)
from jaxvision.cli.data import add_run_data_arguments, evaluation_options, run_configs, source_options, training_images
from jaxvision.errors import UserError

if TYPE_CHECKING:
    from jaxvision.ensemble import Ensemble

HELP = "evaluate models on a dataset: accuracy, loss, calibration error and mistakes"
EXAMPLES = """A model that is named by its workdir is evaluated with the loss and the metric of its run. Without --data
it is evaluated on the run's own data.

examples:
  jaxvision evaluate --model runs/mine --split validation
  jaxvision evaluate --model runs/mine --data images/test --report runs/mine-test
  jaxvision evaluate --model runs/cifar10 --data tfds --option dataset=cifar10
  jaxvision evaluate -m runs/a -m runs/b -m runs/c --fit-weights"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision evaluate``."""
    add_model_arguments(parser, several=True)
    add_tta_argument(parser)
    add_run_data_arguments(parser)
    parser.add_argument(
        "--split", help="train, validation or test (default: test, or validation for a run without test data)"
    )
    parser.add_argument(
        "--config",
        type=path_argument,
        metavar="FILE[:ARGUMENT]",
        help="config file of the run, if the run has a source, a loss or a metric that is defined in it",
    )
    parser.add_argument(
        "--fit-weights",
        action="store_true",
        help="fit the weights of several models on the validation data, by their likelihood, and print them",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images per step, over all devices (default: 32 for each)"
    )
    parser.add_argument(
        "--report", type=path_argument, metavar="FOLDER", help="write report.html and mistakes.csv to this folder"
    )
    add_overwrite_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints the metrics, as a table or as JSON."""
    from jaxvision.data.layout import split_of
    from jaxvision.eval.evaluate import evaluate
    from jaxvision.models.registry import keyword_parameters
    from jaxvision.parallel.accelerators import check_accelerator
    from jaxvision.run.config import load
    from jaxvision.run.sections import without_none

    check_accelerator(warn)
    if arguments.report is not None:
        check_outputs([Path(arguments.report, name) for name in ("report.html", "mistakes.csv")], arguments)
    options = source_options(arguments, keyword_parameters(evaluate))
    if arguments.config is not None:
        load(arguments.config)  # makes the functions in it available under the names that the run has recorded
    configs = run_configs(arguments)
    as_trained = evaluation_options(configs[0] if configs else None)
    sources = [without_none(each.source) for each in configs]
    is_on_training_data = split_of(arguments.split or "") == "train"
    ensemble = load_ensemble(arguments)
    source = sources[0] if sources else None
    data, split, of_data = _data(arguments, source, options)
    if arguments.fit_weights:
        _check_fit(arguments, ensemble, data, split, options)
        ensemble = _fit_weights(arguments, ensemble, source, options, as_trained)
    result = evaluate(
        ensemble.members[0] if len(ensemble.members) == 1 and ensemble.tta is None else ensemble,
        data,
        split=split,
        batch_size=arguments.batch_size,
        report_dir=arguments.report,
        trained_on=[] if is_on_training_data else training_images(arguments.data, sources),
        quiet=arguments.json,
        **as_trained,
        **of_data,
    )
    if arguments.json:
        if "members" in result:
            result["members"] = [
                {"model": name, "weight": weight} | each
                for name, weight, each in zip(ensemble.names, ensemble.weights, result["members"], strict=True)
            ]
        print(json.dumps(result))


def _check_fit(
    arguments: argparse.Namespace, ensemble: Ensemble, data: Any, split: str, options: dict[str, Any]
) -> None:
    """Raises `UserError` unless there are weights to fit, and other images to evaluate them on.

    Args:
      arguments: of the command.
      ensemble: the models.
      data, split: what the result is measured on.
      options: of the source.
    """
    from jaxvision.data.layout import decide, split_of

    got = "--weights" if arguments.weights else "one -m" if len(ensemble.members) == 1 else ""
    if got:
        raise UserError(f"--fit-weights: got {got}, expected several models and no --weights.")
    if split_of(split) == "validation":
        got = "no test data" if arguments.split is None else f"--split {arguments.split}"
        raise UserError(
            f"--fit-weights: got {got}, expected other images to evaluate on than those that the weights are fitted "
            "to. Add --data with a folder that has val/ and test/, or choose --weights yourself."
        )
    if not isinstance(data, str) or not Path(data).is_dir():
        return
    layout = options.get("layout")
    if not decide(Path(data), layout, option="--option layout", classes=ensemble.classes).splits:
        raise UserError(
            f"--fit-weights: got {data}, which has no folders val/ and test/, so the weights would be evaluated on the "
            "images that they are fitted to. Move the images of each class to val/CLASS and test/CLASS, or choose "
            "--weights yourself."
        )


def _fit_weights(
    arguments: argparse.Namespace, ensemble: Ensemble, source: Any, options: dict[str, Any], as_trained: dict[str, Any]
) -> Ensemble:
    """Returns the ensemble with weights that are fitted on the validation data."""
    from jaxvision.eval import fit_ensemble

    on_validation = argparse.Namespace(**{**vars(arguments), "split": "validation"})
    data, split, options = _data(on_validation, source, options)
    limits = {key: as_trained[key] for key in ("max_corrupt", "memory_limit") if key in as_trained}
    return fit_ensemble(
        ensemble, data, split=split, batch_size=arguments.batch_size, quiet=arguments.json, **limits, **options
    )


def _data(
    arguments: argparse.Namespace, source: dict[str, Any] | None, options: dict[str, Any]
) -> tuple[Any, str, dict[str, Any]]:
    """Returns the data to evaluate on, the name of the split, and the options of the data.

    Args:
      arguments: of the command: ``data`` and ``split``.
      source: the section of the run's config; None if the model does not come from a run.
      options: of the source, from the command line.
    """
    from jaxvision.data.source import open_source

    name = arguments.data
    if source is None or name not in (None, source["name"]):
        return name, arguments.split or "test", options
    splits = open_source(**{**source, **options})
    if arguments.split is None and splits.test is None and splits.validation is None:
        raise UserError(
            f"--data: got none, and {arguments.model[0]} has neither test nor validation data. Add --data with images "
            "that it was not trained on, or --split train."
        )
    split = arguments.split or ("validation" if splits.test is None else "test")
    return splits.split(split), split, {}
