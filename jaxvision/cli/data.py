"""The data that a command line names: a folder or a source with its options, and the data of a run."""

from __future__ import annotations

import argparse
import ast
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxvision.cli.arguments import path_argument
from jaxvision.errors import UserError


def add_option_argument(parser: argparse.ArgumentParser, *, default: str = "") -> None:
    """Adds ``--option``; `source_options` reads it.

    Args:
      parser: of the command.
      default: what applies without it, for the help.
    """
    text = "option of the source, such as dataset=cifar10 or data_dir=FOLDER; may be repeated"
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"{text} (default: {default})" if default else text,
    )


def add_run_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--data`` and ``--option``, whose default is the data of the runs; see `run_configs`."""
    parser.add_argument(
        "--data",
        type=path_argument,
        metavar="FOLDER|SOURCE",
        help="a folder with one subfolder per class, or a source such as digits or tfds (default: the data of the run, "
        "if the model is a workdir)",
    )
    add_option_argument(parser, default="those of the run, if it has the same source")


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a source, and how its features are computed; `cache_of` reads those of the cache."""
    add_option_argument(parser)
    parser.add_argument("--batch-size", type=int, help="images per batch, over all devices (default: 32 per device)")
    parser.add_argument(
        "--cache",
        type=path_argument,
        metavar="FOLDER",
        help="folder of the cache of features, which may be removed at any time (default: ~/.cache/jaxvision/features)",
    )
    parser.add_argument("--no-cache", action="store_true", help="neither read nor write the cache")


def cache_of(arguments: argparse.Namespace) -> Path | None:
    """Returns the folder of the cache of features, or None."""
    from jaxvision.disk import cache_folder

    if arguments.no_cache:
        return None
    return cache_folder("features") if arguments.cache is None else Path(arguments.cache)


def source_options(arguments: argparse.Namespace, reserved: Collection[str]) -> dict[str, Any]:
    """Returns the options of a source that ``--option`` gives.

    Args:
      arguments: of the command.
      reserved: names that are not options of a source, such as the arguments of the function to which they are passed.

    Raises:
      UserError: a text of another form than ``KEY=VALUE``, or a reserved name.

    Example:
      >>> texts = ["dataset=cifar10", "test_fraction=0.5"]
      >>> source_options(argparse.Namespace(option=texts, command="evaluate"), ())
      {'dataset': 'cifar10', 'test_fraction': 0.5}
    """
    options: dict[str, Any] = {}
    for text in arguments.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--option: got {text!r}, expected KEY=VALUE.")
        if key in reserved:
            raise UserError(
                f"--option: got {key!r}, expected an option of the source. "
                f"Run `jaxvision {arguments.command} --help` for the other arguments."
            )
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a string without quotes
            options[key] = os.path.expanduser(value)
    return options


def run_configs(arguments: argparse.Namespace) -> list[Any]:
    """Returns the configs of the models that are results of runs. The first chooses data, loss and metric.

    Raises:
      UserError: without ``--data``, no model is that of a run, or several runs have different data.
    """
    from jaxvision.run.recorded import recorded_config

    found = {model: recorded_config(model) for model in arguments.model}
    runs = {model: config for model, config in found.items() if config is not None}
    first = next(iter(runs), None)
    if arguments.data is None:
        if first is None:
            raise UserError(
                f"--data: got none, and --model {arguments.model[0]} is not the workdir of a run, expected a folder or "
                "a source. Add --data."
            )
        for model, config in runs.items():
            if config.source != runs[first].source:
                raise UserError(
                    f"--data: got none, and {model} has another source or split of it than {first}, so the test data "
                    "of one may be training data of the other. Add --data with images that neither was trained on."
                )
    return list(runs.values())


def evaluation_options(config: Any) -> dict[str, Any]:
    """Returns the options of `jaxvision.eval.evaluate` with which a run was evaluated; none without its config."""
    from jaxvision.run.sections import without_none

    if config is None:
        return {}
    return {
        "loss": without_none(config.loss),
        "metric": without_none(config.metric),
        "max_corrupt": config.data.max_corrupt,
        "memory_limit": config.data.memory_limit,
    }


def training_images(data: str | None, sources: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns the training images of the runs that read them from the folder ``--data``, or one above or below it.

    Args:
      data: what ``--data`` names, or None.
      sources: the section ``source`` of the config of each run.
    """
    from jaxvision.data.source import open_source

    found = []
    for i, source in enumerate(sources):
        if source["name"] != "folder" or data is None or source in sources[:i]:
            continue
        given, own = (Path(folder).expanduser().resolve() for folder in (data, source["data_dir"]))
        if not (given.is_dir() and own.is_dir() and (given.is_relative_to(own) or own.is_relative_to(given))):
            continue
        with suppress(UserError):  # the folder has changed since
            found.append(open_source(**source).train)
    return found
