"""The report of a run: one HTML file that works offline and loads no other files."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxvision.report import wording
from jaxvision.report.calibration import calibration_section
from jaxvision.report.charts import stacked_bar
from jaxvision.report.classes import classes_section
from jaxvision.report.config_table import config_section, to_dictionary
from jaxvision.report.confusions import confusions_section
from jaxvision.report.content import Report
from jaxvision.report.curves import curves_section
from jaxvision.report.document import date_line, document
from jaxvision.report.files import write_atomically
from jaxvision.report.gallery import explanations_section, mistakes_section
from jaxvision.report.machine import environment
from jaxvision.report.markup import Markup, join, script_data, tag
from jaxvision.report.metrics import read_metrics
from jaxvision.report.timing import Timing

FILE = "report.html"


def write_report(workdir: str | os.PathLike[str], report: Report) -> Path:
    """Writes ``workdir/report.html`` and returns its path.

    The file contains its images, style and script, and a content security policy that forbids loading anything else.
    It is written atomically: an older report is replaced or, on failure, kept. In a run of several processes call
    this on process 0 only.

    Args:
      workdir: an existing folder. Its ``metrics.jsonl``, if there is one, provides the curves when `report.history`
        is None.
      report: the contents.

    Raises:
      OSError: the folder cannot be created or the disk is full.
      ValueError: an image is not uint8 [h, w, channels], or label, prediction, confidence and classes do not match.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> report = Report(title="resnet18", metrics={"top1": 0.75}, classes=["cat", "dog"],
      ...                 label=np.array([0, 0, 1, 1]), prediction=np.array([0, 1, 1, 1]))
      >>> path = write_report(tempfile.mkdtemp(), report)
      >>> path.name, "cat predicted as dog" in path.read_text(encoding="utf-8")
      ('report.html', True)
    """
    history = read_metrics(workdir) if report.history is None else report.history
    return write_atomically(Path(workdir) / FILE, to_html(report, history))


def to_html(report: Report, history: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page of `report` as HTML, with curves drawn from `history`."""
    versions = report.environment if report.environment is not None else environment()
    created = datetime.now().astimezone()
    predictions = report.predictions()
    sections = [
        ("curves", "Curves", curves_section(history, axis=report.history_axis)),
        ("confusions", "Confusions", confusions_section(predictions) if predictions else None),
        ("classes", "Classes", classes_section(predictions) if predictions else None),
        ("calibration", "Calibration", calibration_section(predictions) if predictions else None),
        ("mistakes", "Mistakes", mistakes_section(report)),
        ("explanations", "Explanations", explanations_section(report)),
        ("time", "Time", _time_section(report.timing)),
        ("config", "Config", config_section(report.config, report.defaults)),
        ("environment", "Environment", _environment_section(versions, report.command)),
    ]
    shown = [(name, title, content) for name, title, content in sections if content]
    data = script_data(_summary(report, versions, created), id="jaxvision-report")
    return document(report.title, _header(report, created), shown, data)


def _header(report: Report, created: datetime) -> Markup:
    facts = [tag("div", tag("dt", wording.label(name)), tag("dd", text)) for name, text in report.facts.items()]
    return tag(
        "header",
        date_line(created),
        tag("h1", report.title),
        tag("p", report.subtitle, class_="subtitle") if report.subtitle else None,
        _headline_numbers(report),
        tag("dl", facts, class_="facts") if facts else None,
        [tag("p", note, class_="note") for note in report.notes],
    )


def _headline_numbers(report: Report) -> Markup | None:
    """Returns the final metrics, the throughput and the duration in large type."""

    def best(name: str) -> Markup | None:
        if not report.best or name not in report.best:
            return None
        at = f" at step {report.best_step:,}" if report.best_step is not None else ""
        return tag("small", f"best {wording.value(name, report.best[name])}{at}")

    tiles = [
        tag("div", tag("dt", wording.label(name)), tag("dd", _with_small_unit(wording.value(name, x))), best(name))
        for name, x in report.metrics.items()
    ]
    if report.timing is not None:
        if report.timing.images_per_second is not None:
            rate = wording.value("images_per_second", report.timing.images_per_second)
            tiles.append(tag("div", tag("dt", "images/s"), tag("dd", rate)))
        duration = wording.duration(report.timing.total)
        tiles.append(tag("div", tag("dt", "time"), tag("dd", _with_small_unit(duration))))
    return tag("dl", tiles, class_="numbers") if tiles else None


def _with_small_unit(text: str) -> Markup:
    number, _, unit = text.rpartition(" ")
    return join([number, tag("span", unit, class_="unit")]) if unit in ("%", "s", "ms") else join([text])


def _time_section(timing: Timing | None) -> Markup | None:
    if timing is None or timing.total <= 0:
        return None
    facts = [
        tag("div", tag("dt", wording.label(name)), tag("dd", wording.value(name, x)))
        for name, x in timing.rates().items()
    ]
    return join([stacked_bar(timing.seconds), tag("dl", facts, class_="facts") if facts else None])


def _environment_section(versions: Mapping[str, str], command: str | Sequence[str] | None) -> Markup | None:
    rows = [tag("div", tag("dt", name), tag("dd", text)) for name, text in versions.items()]
    if command is not None and not isinstance(command, str):
        command = shlex.join(command)
    line = tag("pre", tag("code", command), class_="command") if command else None
    return join([line, tag("dl", rows, class_="facts")]) if rows or line else None


def _summary(report: Report, versions: Mapping[str, str], created: datetime) -> dict[str, Any]:
    """Returns the numbers of the page for programs, such as one that compares runs."""

    def finite(values: Mapping[str, float] | None) -> dict[str, float | None] | None:
        if values is None:
            return None
        return {name: float(x) if math.isfinite(x) else None for name, x in values.items()}

    timing = report.timing
    return {
        "format": 1,
        "title": report.title,
        "made": created.isoformat(timespec="seconds"),
        "metrics": finite(report.metrics),
        "best": finite(report.best),
        "best_step": report.best_step,
        "facts": dict(report.facts),
        "seconds": dict(timing.seconds) if timing else None,
        "images_per_second": timing.images_per_second if timing else None,
        "config": _jsonable(to_dictionary(report.config)) if report.config else None,
        "environment": dict(versions),
    }


def _jsonable(x: Any) -> Any:
    """Returns `x` as JSON represents it; values without a JSON form, such as infinity, become strings."""
    return json.loads(json.dumps(x, default=str), parse_constant=str)
