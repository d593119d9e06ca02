"""``jaxvision soup``: one model whose weights are the average of those of several runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvision.cli.arguments import (
    add_overwrite_argument,
    check_is_no_workdir,
    check_outputs,
    path_argument,
    warn,
)
from jaxvision.cli.data import add_run_data_arguments, evaluation_options, run_configs, source_options
from jaxvision.errors import UserError

if TYPE_CHECKING:
    from jaxvision.classifier import Classifier
    from jaxvision.data import Splits
    from jaxvision.ensemble import Ensemble

HELP = "average the weights of runs that started from the same weights"
EXAMPLES = """A soup predicts in the time of one model. Its BatchNorm statistics are measured again on training data,
unless the runs left them as they were. A table compares the runs, their ensemble and the soup on the test data, or
without any on the validation data.

examples:
  jaxvision soup runs/a runs/b runs/c -o soup            # the average of all
  jaxvision soup runs/a runs/b runs/c -o soup --greedy   # only of those that help on the validation data
  jaxvision soup runs/a -o soup --wise 0.5               # half way from what runs/a started from (WiSE-FT)"""

_ALPHAS = [i / 10 for i in range(11)]


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
    from jaxvision.ensemble import Ensemble
    from jaxvision.parallel.accelerators import check_accelerator

    check_accelerator(warn)
    alpha = _alpha(arguments)
    output = Path(arguments.output)
    check_is_no_workdir(output)
    check_outputs([output / "model.safetensors", output / "config.json"], arguments)
    members = [load_classifier(model) for model in arguments.model]
    with report.Console() as console:
        data = _open_data(arguments, console.note)
        if arguments.wise is not None:
            name, result = _wise(arguments.model[0], members[0], alpha, data, console.note)
        else:
            name, result = _average(arguments, members, data, console.note)
        save_classifier(output, result)
        rows: list[tuple[str, Any]] = list(zip(arguments.model, members))
        if len(members) > 1:
            rows.append((f"ensemble of {len(members)}", Ensemble(members, names=arguments.model)))
        if data is not None and (split := data.final_split) is not None:
            results = [(row, data.metrics(each, split, row)) for row, each in [*rows, (name, result)]]
            console.table(split, results)
        console.note(f"{output}: {name}, in timm's format")


@dataclass(frozen=True)
class _Data:
    """The data of a soup.

    Attributes:
      splits: the training data measure BatchNorm statistics, the validation data choose, the test data compare.
      options: of `jaxvision.eval.evaluate`.
      log: prints the progress.
    """

    splits: Splits
    options: dict[str, Any]
    log: Callable[[str], None]

    @property
    def final_split(self) -> str | None:
        """The split that compares the models; None if there is neither test nor validation data."""
        return next((name for name in ("test", "validation") if getattr(self.splits, name) is not None), None)

    def metrics(self, classifier: Classifier | Ensemble, split: str, name: str) -> dict[str, float]:
        """Returns the metrics that a table shows."""
        from jaxvision.eval.evaluate import evaluate
        from jaxvision.eval.metrics import headline

        self.log(f"evaluating {name} on the {split} data")
        found = evaluate(classifier, self.splits.split(split), split=split, quiet=True, **self.options)
        found.pop("members", None)
        return headline(found, len(classifier.classes))


def _open_data(arguments: argparse.Namespace, log: Callable[[str], None]) -> _Data | None:
    """Returns the data that the arguments name, or else those of the runs; None if there are none."""
    from jaxvision.data.folder import find_folder
    from jaxvision.data.source import open_source
    from jaxvision.run.recorded import recorded_config
    from jaxvision.run.sections import without_none

    if arguments.data is None and not any(map(recorded_config, arguments.model)):
        return None
    config = next(iter(run_configs(arguments)), None)
    options = source_options(arguments, ("name",))
    name = arguments.data
    if config is not None and name in (None, config.source.name):
        source = without_none(config.source) | options
    elif (folder := find_folder(name)) is not None:
        source = {"name": "folder", "data_dir": str(folder)} | options
    else:
        source = {"name": name} | options
    return _Data(open_source(**source), evaluation_options(config) | {"batch_size": arguments.batch_size}, log)


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


def _average(
    arguments: argparse.Namespace, members: list[Classifier], data: _Data | None, log: Callable[[str], None]
) -> tuple[str, Classifier]:
    """Returns a soup of the runs, and its name."""
    from jaxvision.soup import greedy_soup, soup

    if not arguments.greedy:
        return f"soup of {len(members)}", _finished(soup(members), members, data, log)
    data = _required(data, "--greedy")
    scores: list[float] = []

    def score(each: Classifier) -> float:
        name = arguments.model[len(scores)] if len(scores) < len(members) else "a larger soup"
        scores.append(data.metrics(each, "validation", name)["top1"])
        log(f"  {scores[-1]:.2%}")
        return scores[-1]

    result, chosen = greedy_soup(members, score, finish=lambda each: _finished(each, members, data))
    log(f"greedy soup of {', '.join(arguments.model[i] for i in chosen)}")
    return f"greedy soup of {len(chosen)}", result


def _wise(
    workdir: str, member: Classifier, alpha: float | None, data: _Data | None, log: Callable[[str], None]
) -> tuple[str, Classifier]:
    """Returns the average of a run and what it started from, and its name; without `alpha` the best one."""
    from jaxvision.run.origin import load_origin
    from jaxvision.soup import soup

    origin = load_origin(workdir, member)
    if alpha is not None:
        return f"alpha {alpha:g}", _finished(soup([origin, member], [1 - alpha, alpha]), [origin, member], data, log)
    data = _required(data, "--wise sweep")
    best: tuple[float, float, Any] = (-1.0, 0.0, None)
    for each in _ALPHAS:
        candidate = member
        if each < 1:
            candidate = _finished(soup([origin, member], [1 - each, each]), [origin, member], data)
        top1 = data.metrics(candidate, "validation", f"alpha {each:.1f}")["top1"]
        log(f"  {top1:.2%}")
        if top1 >= best[0]:  # of equal ones the nearest to the run
            best = (top1, each, candidate)
    return f"alpha {best[1]:g}", best[2]


def _required(data: _Data | None, flag: str) -> _Data:
    if data is None:
        raise UserError(f"{flag}: got no data, expected validation data to choose by. Add --data.")
    if data.splits.validation is None:
        raise UserError(
            f"{flag}: got data without a validation split, expected one to choose by. Train the runs with "
            "--config.source.validation_fraction=0.1, or add --data with images that they were not trained on."
        )
    return data


def _finished(
    classifier: Classifier,
    members: Sequence[Classifier],
    data: _Data | None,
    log: Callable[[str], None] = lambda _: None,
) -> Classifier:
    """Returns a soup of members with BatchNorm statistics that are measured again, if that is needed and possible."""
    from jaxvision.eval.statistics import has_statistics, measure_statistics, same_statistics

    if not has_statistics(classifier):
        return classifier
    if same_statistics(members):
        log("BatchNorm statistics: kept, because all models have the same")
        return classifier
    images = None if data is None else data.splits.train
    if images is None:
        log("BatchNorm statistics: averaged, because there are no training images to measure them on")
        return classifier
    log("BatchNorm statistics: measured again on training images")
    return measure_statistics(classifier, images, quiet=True)
