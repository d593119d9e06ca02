"""The report of a run: one HTML file that opens from the disk and loads nothing."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.report import wording
from jaxvision.report.answers import Answers, calibration_section, classes_section, confusions_section, meter
from jaxvision.report.charts import Line, line_chart, stacked_bar
from jaxvision.report.files import write_atomically
from jaxvision.report.machine import environment
from jaxvision.report.markup import Markup, join, picture_uri, script_data, tag
from jaxvision.report.metrics import read_metrics
from jaxvision.report.timing import Timing

FILE = "report.html"

# A page of 1000 classes stays below 5 MB by these, too (see answers.py).
_MOST_MISTAKES, _MISTAKE_SIDE = 60, 160  # pixels of the longer side
_MOST_EXPLANATIONS, _EXPLANATION_SIDE = 16, 360


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture and what the model took it for.

    Attributes:
      image: uint8 [h, w, 3], [h, w, 1] or [h, w].
      overlay: the same with what the model looked at, likewise; for explanations.
      true: the right class: its name, or its number in `Report.classes`. None: not known.
      predicted: the model's answer, likewise.
      confidence: probability of that answer, 0 to 1.
      where: file or index, to find the picture again.
    """

    image: np.ndarray
    overlay: np.ndarray | None = None
    true: int | str | None = None
    predicted: int | str | None = None
    confidence: float | None = None
    where: str | int = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report tells. Everything but the title may be missing; its section is then left out.

    Attributes:
      title: the model, or what the run is called.
      subtitle: one sentence on what was done.
      facts: short texts by name for the head of the page, such as ``{"data": "50,000 train, 10,000 test"}``.
      metrics: the final numbers by name, the headline first. ``top1``, ``top5`` and ``calibration_error`` are
        shares, 0 to 1.
      best: the numbers of the best evaluation, where that was not the last.
      best_step: after how many steps that was.
      notes: what a reader should know, such as pictures that could not be read.
      history: lines as `read_metrics` gives them, for the curves. None: those of the workdir.
      classes: names of the classes [k]. None: their numbers.
      label: the right class of each image that was evaluated [n].
      prediction: the model's answer [n].
      confidence: the probability that it gave to that answer, 0 to 1 [n].
      mistakes: the most confident ones first.
      explanations: pictures with their `overlay`.
      explanation_method: how the overlays were made, such as ``"Grad-CAM"``.
      config: sections of keys and values (nested dictionaries or a ConfigDict).
      defaults: likewise; what differs from it is marked.
      command: the command line, as a text or as arguments.
      timing: what a `Clock` measured.
      environment: None: as `environment()` finds it now.
    """

    title: str
    subtitle: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] | None = None
    best_step: int | None = None
    notes: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] | None = None
    classes: Sequence[str] | None = None
    label: np.ndarray | None = None
    prediction: np.ndarray | None = None
    confidence: np.ndarray | None = None
    mistakes: Sequence[Picture] = ()
    explanations: Sequence[Picture] = ()
    explanation_method: str = "attention"
    config: Mapping[str, Any] | None = None
    defaults: Mapping[str, Any] | None = None
    command: str | Sequence[str] | None = None
    timing: Timing | None = None
    environment: Mapping[str, str] | None = None

    def answers(self) -> Answers | None:
        """Returns what derives from label, prediction and confidence; None where they are not given."""
        if self.label is None or self.prediction is None or not len(self.label):
            return None
        label, prediction = np.asarray(self.label), np.asarray(self.prediction)
        names = self.classes if self.classes is not None else range(int(max(label.max(), prediction.max())) + 1)
        return Answers(
            names=[str(name) for name in names], label=label, prediction=prediction, confidence=self.confidence
        )


def write_report(workdir: str | os.PathLike[str], report: Report) -> Path:
    """Writes ``workdir/report.html`` and returns its path.

    The file is complete in itself: pictures, style and script are inside, and a rule in its head forbids browsers to
    load anything else. It is written in one stroke: a report that was there before is replaced, never damaged. In a
    run of several processes only process 0 should call this.

    Args:
      workdir: an existing folder; its ``metrics.jsonl``, if any, gives the curves where `report.history` is None.
      report: what to tell.

    Raises:
      OSError: the folder is missing or the disk is full.
      ValueError: a picture is not uint8 [h, w, channels]; label, prediction, confidence and classes do not fit.

    Example:
      >>> import tempfile
      >>> report = Report(title="resnet18", metrics={"top1": 0.75}, classes=["cat", "dog"],
      ...                 label=np.array([0, 0, 1, 1]), prediction=np.array([0, 1, 1, 1]))
      >>> path = write_report(tempfile.mkdtemp(), report)
      >>> path.name, "cat taken for dog" in path.read_text(encoding="utf-8")
      ('report.html', True)
    """
    history = read_metrics(workdir) if report.history is None else report.history
    return write_atomically(Path(workdir) / FILE, to_html(report, history))


def to_html(report: Report, history: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page of `report`, its curves drawn from `history`."""
    found = report.environment if report.environment is not None else environment()
    made = datetime.now().astimezone()
    answers = report.answers()
    sections = [
        ("curves", "Curves", _curves(history)),
        ("confusions", "Confusions", confusions_section(answers) if answers else None),
        ("classes", "Classes", classes_section(answers) if answers else None),
        ("calibration", "Calibration", calibration_section(answers) if answers else None),
        ("mistakes", "Mistakes", _mistakes(report)),
        ("explanations", "Explanations", _explanations(report)),
        ("time", "Time", _time(report.timing)),
        ("config", "Config", _config(report.config, report.defaults)),
        ("environment", "Environment", _environment(found, report.command)),
    ]
    present = [section for section in sections if section[2]]
    theme = tag("button", "◐", type="button", id="theme", title="light or dark", aria_label="light or dark")
    navigation = tag(
        "nav",
        tag("a", "jaxvision", href="#top", class_="mark"),
        tag("div", [tag("a", title, href=f"#{name}") for name, title, _ in present], class_="links"),
        theme,
    )
    body = tag(
        "body",
        navigation,
        tag("main", _head(report, made), [_section(*section) for section in present], id="top"),
        tag("div", id="tip", role="tooltip", hidden=True),
        script_data(_summary(report, found, made), id="jaxvision-report"),
        tag("script", Markup(_resource("page.js"))),
    )
    # Nothing may be loaded, so nothing that a class name or a path smuggles in can be, either.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{report.title} · jaxvision"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(_resource("page.css"))),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en")


def _resource(name: str) -> str:
    return resources.files("jaxvision.report").joinpath(name).read_text(encoding="utf-8")


def _section(name: str, title: str, content: Markup | None) -> Markup:
    return tag("section", tag("h2", title), content, id=name)


def _head(report: Report, made: datetime) -> Markup:
    facts = [tag("div", tag("dt", wording.label(name)), tag("dd", text)) for name, text in report.facts.items()]
    return tag(
        "header",
        tag(
            "p",
            tag("time", f"{made:%d %B %Y, %H:%M}".lstrip("0"), datetime=made.isoformat(timespec="seconds")),
            class_="made",
        ),
        tag("h1", report.title),
        tag("p", report.subtitle, class_="subtitle") if report.subtitle else None,
        _numbers(report),
        tag("dl", facts, class_="facts") if facts else None,
        [tag("p", note, class_="note") for note in report.notes],
    )


def _numbers(report: Report) -> Markup | None:
    """The headline and the tiles beside it."""

    def best(name: str) -> Markup | None:
        if not report.best or name not in report.best:
            return None
        at = f" at step {report.best_step:,}" if report.best_step is not None else ""
        return tag("small", f"best {wording.value(name, report.best[name])}{at}")

    tiles = [
        tag("div", tag("dt", wording.label(name)), tag("dd", _with_unit(wording.value(name, x))), best(name))
        for name, x in report.metrics.items()
    ]
    if report.timing is not None:
        if report.timing.images_per_second is not None:
            rate = wording.value("images_per_second", report.timing.images_per_second)
            tiles.append(tag("div", tag("dt", "images/s"), tag("dd", rate)))
        tiles.append(tag("div", tag("dt", "time"), tag("dd", _with_unit(wording.duration(report.timing.total)))))
    return tag("dl", tiles, class_="numbers") if tiles else None


def _with_unit(text: str) -> Markup:
    """The unit of a big number is written small."""
    number, _, unit = text.rpartition(" ")
    return join([number, tag("span", unit, class_="unit")]) if unit in ("%", "s", "ms") else join([text])


# Curves.


def _curves(history: Sequence[Mapping[str, Any]]) -> Markup | None:
    by_name: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in history:
        for name, x in line.items():
            if name not in ("step", "epoch", "split", "time", "count") and isinstance(x, int | float):
                by_name.setdefault(name, {}).setdefault(str(line["split"]), []).append((line["step"], x))
    epochs = [line["epoch"] / line["step"] for line in history if line.get("epoch") and line["step"]]
    # What people look at first comes first, the rest as it was measured.
    first = ["loss", "top1", "learning_rate", "top5", "calibration_error"]
    names = [name for name in first if name in by_name] + [name for name in by_name if name not in first]
    splits = list(
        dict.fromkeys(split for lines in by_name.values() for split in lines)
    )  # each has one color throughout
    figures = []
    for name in names:
        lines = []
        for split, points in by_name[name].items():
            x, y = np.array(sorted(points), dtype=np.float64).T
            # A step's loss is noise around a trend; an evaluation is what it is.
            smooth = split == "train" and len(x) > 40 and name != "learning_rate"
            lines.append(Line(name=split, x=x, y=y, color=splits.index(split), smooth=smooth))
        title = wording.label(name)
        title = title[:1].upper() + title[1:]
        figures.append(line_chart(title, lines, quantity=name, epochs_per_step=epochs[-1] if epochs else None))
    return tag("div", figures, class_="charts") if figures else None


# Pictures.


def _class_name(report: Report, label: int | str | None) -> str:
    if label is None:
        return ""
    if isinstance(label, str):
        return label
    names = report.classes
    return str(names[int(label)]) if names is not None and 0 <= int(label) < len(names) else str(int(label))


def _caption(report: Report, picture: Picture) -> Markup:
    true, predicted = _class_name(report, picture.true), _class_name(report, picture.predicted)
    sure = None
    if picture.confidence is not None:
        sure = tag("span", meter(picture.confidence, "wrong" if true and true != predicted else "right"))
        sure = join([sure, tag("span", f"{100 * picture.confidence:.1f} %", class_="sure")])
    where = str(picture.where)
    verdict = None
    if predicted:
        verdict = tag("b", predicted, class_="right" if not true or true == predicted else "wrong", title=predicted)
    return tag(
        "figcaption",
        verdict,
        tag("span", "is ", tag("span", true, class_="class"), title=true) if true and true != predicted else None,
        tag("span", sure, class_="confidence") if sure else None,
        tag("span", where, class_="where", title=where) if where else None,
    )


def _image(image: np.ndarray, *, side: int, alt: str) -> Markup:
    height, width = np.shape(image)[:2]
    # Few pixels are shown as such; smoothed, they would look like a bad picture of much detail.
    small = "pixels" if max(height, width) <= 64 else None
    return tag("img", src=picture_uri(image, side=side), alt=alt, class_=small)


def _mistakes(report: Report) -> Markup | None:
    if not report.mistakes:
        return None
    figures = []
    for picture in report.mistakes[:_MOST_MISTAKES]:
        true = _class_name(report, picture.true)
        image = _image(picture.image, side=_MISTAKE_SIDE, alt=true)
        figures.append(tag("figure", image, _caption(report, picture)))
    lead = f"The {len(figures)} wrong answers that the model was most sure of: what it said, and what it is."
    return join([tag("p", lead, class_="lead"), tag("div", figures, class_="gallery")])


def _explanations(report: Report) -> Markup | None:
    if not report.explanations:
        return None
    figures = []
    for picture in report.explanations[:_MOST_EXPLANATIONS]:
        images = [_image(picture.image, side=_EXPLANATION_SIDE, alt="original")]
        if picture.overlay is not None:
            images.append(_image(picture.overlay, side=_EXPLANATION_SIDE, alt=report.explanation_method))
        figures.append(tag("figure", tag("div", images, class_="pair"), _caption(report, picture)))
    lead = f"Where the model looked: the picture, and the same under {report.explanation_method}."
    return join([tag("p", lead, class_="lead"), tag("div", figures, class_="gallery wide")])


# What it took, and what it was.


def _time(timing: Timing | None) -> Markup | None:
    if timing is None or timing.total <= 0:
        return None
    facts = {
        "images_per_second": timing.images_per_second,
        "step_seconds": timing.step_seconds,
        "data_wait": timing.data_wait,
    }
    shown = [
        tag("div", tag("dt", wording.label(name)), tag("dd", wording.value(name, x)))
        for name, x in facts.items()
        if x is not None
    ]
    return join([stacked_bar(timing.seconds), tag("dl", shown, class_="facts") if shown else None])


def _config(config: Mapping[str, Any] | None, defaults: Mapping[str, Any] | None) -> Markup | None:
    if not config:
        return None
    usual = None if defaults is None else _flat(defaults)
    sections: dict[str, list[Markup]] = {}
    changed = 0
    for key, x in _flat(config).items():
        section, _, name = key.rpartition(".")
        differs = usual is not None and (key not in usual or usual[key] != x)
        changed += differs
        before = tag("s", _literal(usual[key])) if usual is not None and differs and key in usual else None
        row = tag(
            "tr", tag("th", name, scope="row"), tag("td", _literal(x), before), class_="changed" if differs else None
        )
        sections.setdefault(section, []).append(row)
    tables = [
        tag("div", tag("h3", section or "run"), tag("table", tag("tbody", rows)), class_="block")
        for section, rows in sections.items()
    ]
    lead = None
    if usual is not None:
        lead = tag(
            "p",
            f"{changed} of {len(_flat(config))} values differ from the defaults: marked, the default struck through.",
            class_="lead",
        )
    text = json.dumps(_nested(config), indent=2, default=str, ensure_ascii=False)
    whole = tag("details", tag("summary", "as JSON"), tag("pre", text))
    return join([lead, tag("div", tables, class_="blocks"), whole])


def _items(x: Any) -> Mapping[str, Any] | None:
    """Returns a section of a config as a dictionary, or None where `x` is a value."""
    if isinstance(x, Mapping):
        return x
    return x.to_dict() if hasattr(x, "to_dict") else None  # ConfigDict


def _nested(x: Any) -> Any:
    items = _items(x)
    return x if items is None else {str(key): _nested(inner) for key, inner in items.items()}


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, x in (_items(config) or {}).items():
        if _items(x):
            flat |= _flat(x, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _nested(x)
    return flat


def _literal(x: Any) -> str:
    if isinstance(x, str) and x:
        return x
    if isinstance(x, float):
        return f"{x:g}" if float(f"{x:g}") == x else repr(x)
    return repr(x)


def _environment(found: Mapping[str, str], command: str | Sequence[str] | None) -> Markup | None:
    rows = [tag("div", tag("dt", name), tag("dd", text)) for name, text in found.items()]
    if command is not None and not isinstance(command, str):
        command = shlex.join(command)
    line = tag("pre", tag("code", command), class_="command") if command else None
    return join([line, tag("dl", rows, class_="facts")]) if rows or line else None


def _summary(report: Report, found: Mapping[str, str], made: datetime) -> dict[str, Any]:
    """The numbers of the page for programs: what a comparison of runs needs."""

    def finite(values: Mapping[str, float] | None) -> dict[str, float | None] | None:
        if values is None:
            return None
        return {name: float(x) if math.isfinite(x) else None for name, x in values.items()}

    timing = report.timing
    return {
        "format": 1,
        "title": report.title,
        "made": made.isoformat(timespec="seconds"),
        "metrics": finite(report.metrics),
        "best": finite(report.best),
        "best_step": report.best_step,
        "facts": dict(report.facts),
        "seconds": dict(timing.seconds) if timing else None,
        "images_per_second": timing.images_per_second if timing else None,
        "config": _jsonable(_nested(report.config)) if report.config else None,
        "environment": dict(found),
    }


def _jsonable(x: Any) -> Any:
    """Returns `x` with its values as JSON has them; what JSON lacks, infinity too, is text."""
    return json.loads(json.dumps(x, default=str), parse_constant=str)
