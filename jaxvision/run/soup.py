"""Soups of runs: chosen on validation data, BatchNorm statistics measured on training data, compared on test data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxvision.classifier import Classifier
from jaxvision.data.folder import find_folder
from jaxvision.data.source import Splits, open_source
from jaxvision.ensemble import Ensemble
from jaxvision.errors import UserError
from jaxvision.eval.evaluate import evaluate
from jaxvision.eval.metrics import headline
from jaxvision.eval.statistics import has_statistics, measure_statistics, same_statistics
from jaxvision.run.origin import load_origin
from jaxvision.run.sections import without_none
from jaxvision.soup import greedy_soup, soup

#: The shares of a run that a sweep tries.
ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class SoupData:
    """The data of a soup.

    Attributes:
      splits: the training data measure BatchNorm statistics, the validation data choose, the test data compare.
      options: of `jaxvision.eval.evaluate`.
    """

    splits: Splits
    options: dict[str, Any]

    @property
    def final_split(self) -> str | None:
        """The split that compares the models; None if there is neither test nor validation data."""
        return next((name for name in ("test", "validation") if getattr(self.splits, name) is not None), None)

    def metrics(
        self, classifier: Classifier | Ensemble, split: str, name: str, log: Callable[[str], None]
    ) -> dict[str, float]:
        """Returns the metrics for the table."""
        log(f"evaluating {name} on the {split} data")
        found = evaluate(classifier, self.splits.split(split), split=split, quiet=True, **self.options)
        found.pop("members", None)
        return headline(found, len(classifier.classes))


def open_splits(name: str | None, config: ConfigDict | None, options: dict[str, Any]) -> Splits:
    """Returns the splits of a folder or a source, with the options of the run if the run has the same source.

    Args:
      name: the folder or the source. None: the source of the run.
      config: of the run. None: the models do not come from a run, and `name` is given.
      options: of the source.
    """
    source: dict[str, Any] = {"name": name}
    if config is not None and (name in (None, config.source.name) or _is_folder_of(config, name)):
        source = without_none(config.source)
    elif name is not None and (folder := find_folder(name)) is not None:
        source = {"name": "folder", "data_dir": str(folder)}
    return open_source(**source | options)


def _is_folder_of(config: ConfigDict, name: str) -> bool:
    """Returns whether a run read its images from the folder `name`."""
    if config.source.name != "folder":
        return False
    given, own = (Path(folder).expanduser().resolve() for folder in (name, config.source.data_dir))
    return given == own


def average_runs(
    models: Sequence[str],
    members: Sequence[Classifier],
    data: SoupData | None,
    *,
    greedy: bool,
    log: Callable[[str], None],
) -> tuple[str, Classifier]:
    """Returns the name of a soup of runs, and the soup.

    Args:
      models: the names of the runs.
      members: their classifiers.
      data: None: no training images measure the BatchNorm statistics.
      greedy: take only the runs that do not lower the accuracy on the validation data.
      log: called with a line for each step.

    Raises:
      UserError: the runs cannot be averaged, or `greedy` without validation data.
    """
    if not greedy:
        return f"soup of {len(members)}", _measure_statistics_if_needed(soup(members), members, data, log)
    data = _require_validation(data, "--greedy")
    scores: list[float] = []

    def score(each: Classifier) -> float:
        name = models[len(scores)] if len(scores) < len(members) else "a larger soup"
        scores.append(data.metrics(each, "validation", name, log)["top1"])
        log(f"  {scores[-1]:.2%}")
        return scores[-1]

    result, chosen = greedy_soup(members, score, finish=lambda each: _measure_statistics_if_needed(each, members, data))
    log(f"greedy soup of {', '.join(models[i] for i in chosen)}")
    return f"greedy soup of {len(chosen)}", result


def average_with_origin(
    workdir: str, member: Classifier, alpha: float | None, data: SoupData | None, *, log: Callable[[str], None]
) -> tuple[str, Classifier]:
    """Returns the name of the average of a run and the model that it started from (WiSE-FT), and the average.

    Args:
      workdir: of the run.
      member: its classifier.
      alpha: share of the run. 0 returns the origin unchanged, 1 the run. None: the one of `ALPHAS` with the highest
        accuracy on the validation data.
      data: None: no training images measure the BatchNorm statistics.
      log: called with a line for each step.

    Raises:
      UserError: the run started from random weights, or there are no validation data to choose by.
    """
    origin = load_origin(workdir, member)
    if alpha is not None:
        return f"alpha {alpha:g}", _between(origin, member, alpha, data, log)
    data = _require_validation(data, "--wise sweep")
    best: tuple[float, float, Any] = (-1.0, 0.0, None)
    for each in ALPHAS:
        candidate = _between(origin, member, each, data)
        top1 = data.metrics(candidate, "validation", f"alpha {each:.1f}", log)["top1"]
        log(f"  {top1:.2%}")
        if top1 >= best[0]:  # of equal ones the nearest to the run
            best = (top1, each, candidate)
    return f"alpha {best[1]:g}", best[2]


def _between(
    origin: Classifier,
    member: Classifier,
    alpha: float,
    data: SoupData | None,
    log: Callable[[str], None] = lambda _: None,
) -> Classifier:
    """Returns the average of two models. The share 0 or 1 gives one of them, with its own BatchNorm statistics."""
    if alpha in (0, 1):
        return member if alpha else origin
    average = soup([origin, member], [1 - alpha, alpha])
    return _measure_statistics_if_needed(average, [origin, member], data, log)


def compare(
    models: Sequence[str],
    members: Sequence[Classifier],
    name: str,
    result: Classifier,
    data: SoupData,
    *,
    log: Callable[[str], None],
) -> list[tuple[str, dict[str, float]]]:
    """Returns the name and the metrics on the final split of each run, of their ensemble, and of the soup.

    Args:
      models: the names of the runs.
      members: their classifiers.
      name: of the soup.
      result: the soup.
      data: has test or validation data.
      log: called with a line before each evaluation.
    """
    assert data.final_split is not None
    rows: list[tuple[str, Any]] = list(zip(models, members, strict=True))
    if len(members) > 1:
        rows.append((f"ensemble of {len(members)}", Ensemble(members, names=models)))
    return [(row, data.metrics(each, data.final_split, row, log)) for row, each in [*rows, (name, result)]]


def _require_validation(data: SoupData | None, flag: str) -> SoupData:
    if data is None:
        raise UserError(f"{flag}: got no data, expected validation data to choose by. Add --data.")
    if data.splits.validation is None:
        raise UserError(
            f"{flag}: got data without a validation split, expected one to choose by. Train the runs with "
            "--config.source.validation_fraction=0.1, or add --data with images that they were not trained on."
        )
    return data


def _measure_statistics_if_needed(
    classifier: Classifier,
    members: Sequence[Classifier],
    data: SoupData | None,
    log: Callable[[str], None] = lambda _: None,
) -> Classifier:
    """Returns a soup of members with BatchNorm statistics that are measured again, if that is needed and possible."""
    if not has_statistics(classifier):
        return classifier
    if same_statistics(members):
        log("BatchNorm statistics: kept, because all models have the same")
        return classifier
    if data is None or data.splits.train is None:
        log("BatchNorm statistics: averaged, because there are no training images to measure them on")
        return classifier
    log("BatchNorm statistics: measured again on training images")
    limit = {key: x for key, x in data.options.items() if key == "max_corrupt"}
    return measure_statistics(classifier, data.splits.train, quiet=True, **limit)
