"""`recommend`: the ranked short list of models for a set of images and a device, with the reasons in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from jaxvision.advice.choices import Choice, Training, catalog_choices
from jaxvision.advice.images import Images, describe_folder
from jaxvision.advice.measure import measure_latency
from jaxvision.advice.rule import METRICS, Case, Situation, find_case, shortlist
from jaxvision.advice.target import Target, find_target
from jaxvision.advice.trial import rank_by_trial
from jaxvision.advice.words import CONFIG, commands, notes, reasons
from jaxvision.errors import UserError, count, unknown_name_error
from jaxvision.parallel.chips import GIB
from jaxvision.run.config import load
from jaxvision.run.recipe import fine_tuning_epochs
from jaxvision.weights import hub
from jaxvision.weights.catalog import lookup

_LENGTH = 5
# Some models may not fit into the memory or be too slow, so the list is longer before that is known.
_LENGTH_BEFORE_LIMITS = 8


@dataclass(frozen=True)
class Recommendation:
    """What `recommend` returns.

    Attributes:
      images: what the folder contains; None without a folder.
      target: the devices.
      case: the case of the decision tree.
      rows: the short list, best first. The first row is the recommendation.
      reasons: why the first row, in sentences.
      notes: what else to know, in sentences.
      commands: what to run next: a probe, then fine-tuning.
    """

    images: Images | None
    target: Target
    case: Case
    rows: tuple[Choice, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields as values that JSON can hold."""
        return {
            "images": self.images and asdict(self.images),
            "target": asdict(self.target),
            "case": self.case.name,
            "rows": [asdict(row) for row in self.rows],
            "reasons": self.reasons,
            "notes": self.notes,
            "commands": self.commands,
        }


def recommend(
    data: str | Path | None = None,
    *,
    images: int | None = None,
    device: str | None = None,
    metric: str | None = None,
    latency: float | None = None,
    license: str | None = None,
    max_params: str | float | None = None,
    tries: int | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Recommendation:
    """Returns a ranked short list of models for a set of images and a device, and the reasons.

    The rule is `jaxvision.advice.rule.shortlist` on a case of `jaxvision.advice.rule.CASES`.

    Args:
      data: a folder with one folder of images per class, or with ``train`` and ``val`` or ``test``.
      images: number of images, if there is no folder yet.
      device: the device to train on, such as ``"t4"``, ``"v5e"``, ``"8GB"`` or ``"cpu"``; or the device that will use
        the model, ``"phone"`` or ``"raspberrypi"``. Default: the device that JAX sees here.
      metric: what counts most: ``"accuracy"``, ``"speed"`` or ``"size"``. Default: a balance, by the decision tree.
      latency: measure the time of one image on the device that JAX sees here, and exclude models that take more than
        this many milliseconds; ``math.inf`` excludes none. Default: do not measure.
      license: a shell pattern of the weights' licenses, such as ``"apache-2.0"``, or ``"*"`` for any license. Default:
        the licenses that are free for any use.
      max_params: the most parameters, as a number or a string such as ``"30M"``.
      tries: probe this many of the best on a sample of the images, and rank them by the accuracy. Needs `data` and
        the weights, which are downloaded. Default: none.
      log: called with a line before each measurement.

    Raises:
      UserError: no such folder, an unknown device, metric or license, or limits that no model meets.

    Example:
      >>> found = recommend(images=800, device="t4")
      >>> [row.architecture for row in found.rows[:2]]
      ['vit_base_patch16_224', 'efficientnet_b4']
      >>> found.commands[-1].split()[:3]
      ['python', '-m', 'jaxvision.main']
    """
    if metric is not None and metric not in METRICS:
        raise unknown_name_error("metric", metric, METRICS)
    if images is not None and (data is not None or images < 1):
        raise UserError(
            f"images: got {images}, expected 1 or more, and no data. Omit images to count those of a folder."
        )
    if latency is not None and not latency > 0:
        raise UserError(f"latency: got {latency:g}, expected more than 0 milliseconds.")
    if tries is not None and (data is None or not 1 <= tries <= _LENGTH):
        raise UserError(f"tries (--try): got {tries}, expected 1 to {_LENGTH} models, and data to try them on.")
    candidates = catalog_choices(license=license, max_params=max_params)
    found = None if data is None else describe_folder(data)
    target = find_target(device)
    total = images if found is None else found.total
    case = find_case(Situation(total, is_large=target.is_large, is_mobile=target.is_mobile, metric=metric))
    config = load(CONFIG)
    trained = images if found is None else found.training
    epochs = fine_tuning_epochs(trained or 1)  # without a number of images they are not used
    training = Training(target.chip, config.data.batch_size, epochs, trained)
    listed = shortlist(candidates, case, length=_LENGTH_BEFORE_LIMITS)
    fitting = (row for row in map(training.cost, listed) if row.accumulate is not None)
    has_limit = latency is not None and math.isfinite(latency)
    rows = [
        replace(row, is_offline=hub.is_cached(lookup(row.name)))
        for row in islice(fitting, None if has_limit else _LENGTH)
    ]
    if not rows:
        raise _does_not_fit_error(listed, training)
    if latency is not None:
        rows = _within_latency(rows, latency, 1000 if found is None else found.classes, log)
    rows = rows[:_LENGTH]
    if data is not None and tries is not None:
        rows = rank_by_trial(rows, tries, data, log=log)
    return Recommendation(
        images=found,
        target=target,
        case=case,
        rows=tuple(rows),
        reasons=tuple(reasons(rows, case, training, left_out=_left_out(case, rows, candidates, training))),
        notes=tuple(notes(rows, target, found)),
        commands=tuple(commands(rows[0], data)),
    )


def _left_out(case: Case, rows: list[Choice], candidates: list[Choice], training: Training) -> dict[str, str]:
    """Returns {architecture: why it is not in the list} for the picks of the case that are missing."""
    missing = {}
    for pick in case.picks:
        weights = [row for row in candidates if row.architecture == pick and row.macs <= case.macs]
        if pick in {row.architecture for row in rows}:
            continue
        if not weights:
            missing[pick] = "the limits that you set exclude it"
        elif (cost := training.cost(weights[0])).accumulate is None:
            missing[pick] = f"training needs {cost.training_bytes / GIB:.2g} GiB"
        else:
            missing[pick] = "its latency is above the limit"
    return missing


def _does_not_fit_error(listed: list[Choice], training: Training) -> UserError:
    least = min(map(training.cost, listed), key=lambda row: row.training_bytes)
    return UserError(
        f"device: got {training.chip.name} with {training.chip.memory / GIB:.2g} GiB, expected at least "
        f"{least.training_bytes / GIB:.2g} GiB to train {least.name}, by estimate. Choose another device."
    )


def _within_latency(rows: list[Choice], limit: float, num_classes: int, log: Callable[[str], None]) -> list[Choice]:
    """Returns the rows with their latency, without those that take more than `limit` milliseconds."""
    measured = []
    for i, row in enumerate(rows):
        log(f"measuring the latency of {row.name} ({i + 1} of {len(rows)}) ...")
        measured.append(replace(row, latency=measure_latency(row.architecture, row.image_size, num_classes)))
    times = [row.latency.median for row in measured if row.latency is not None]
    within = [row for row, time in zip(measured, times, strict=True) if time <= limit]
    if not within:
        best = min(times)
        raise UserError(
            f"latency: got {limit:g} ms, expected {best:.3g} ms or more: the fastest of {count(len(times), 'model')} "
            f"measured here is {measured[times.index(best)].name}. Pass a larger number. To see all, pass math.inf "
            "(--latency without a number)."
        )
    return within
