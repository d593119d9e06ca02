"""Accuracy and precision of each class, as a sortable table."""

from __future__ import annotations

import math

import numpy as np

from jaxvision.report.charts import histogram
from jaxvision.report.confusions import MAX_TABLE_CLASSES
from jaxvision.report.markup import Markup, join, meter, tag
from jaxvision.report.predictions import Predictions

_MAX_ROWS = 1200  # keeps a page of 1,000 classes below 5 MB, together with the limits in confusions.py and gallery.py


def classes_section(predictions: Predictions) -> Markup:
    """Returns the table of classes, the lowest accuracy first. With many classes it adds a histogram and a search."""
    k, totals = len(predictions.names), predictions.totals()
    correct = np.bincount(predictions.label[predictions.label == predictions.prediction], minlength=k)
    predicted = np.bincount(predictions.prediction, minlength=k)
    accuracy = np.where(totals > 0, correct / np.maximum(totals, 1), np.nan)
    precision = np.where(predicted > 0, correct / np.maximum(predicted, 1), np.nan)

    order = np.argsort(np.where(totals > 0, accuracy, 2.0), kind="stable")[:_MAX_ROWS]  # classes without images last
    table = _table(predictions, order.tolist(), accuracy, precision)
    lead = f"Mean accuracy over the classes: {100 * accuracy[totals > 0].mean():.2f} %."
    if k > len(order):
        lead += f" The table lists the {len(order):,} classes of lowest accuracy, of {k:,}."
    if k <= MAX_TABLE_CLASSES:
        return join([tag("p", lead, class_="lead"), tag("div", table, class_="scroll")])

    def describe(n: int, low: float, high: float) -> str:
        return f"{n:,} classes\naccuracy {100 * low:.0f} to {100 * high:.0f} %"

    search = tag("input", type="search", placeholder=f"Search {len(order):,} classes", aria_label="search the classes")
    return join(
        [
            tag("p", lead, class_="lead"),
            histogram("Classes by accuracy", accuracy, describe=describe),
            tag("div", search, class_="search"),
            tag("div", table, class_="scroll tall"),
        ]
    )


def _table(predictions: Predictions, order: list[int], accuracy: np.ndarray, precision: np.ndarray) -> Markup:
    names, totals = predictions.names, predictions.totals()
    confused: dict[int, tuple[int, int]] = {}
    for i, j, n in zip(*(x.tolist() for x in predictions.mistakes()), strict=True):
        confused.setdefault(i, (j, n))  # mistakes are sorted by count: the first is the most frequent
    rows = []
    for i in order:
        other = [names[confused[i][0]], tag("small", f" {confused[i][1]:,}")] if i in confused else []
        row = tag(
            "tr",
            tag("td", tag("span", names[i], class_="class"), title=names[i], data_value=names[i].lower()),
            tag("td", meter(accuracy[i], "right") if totals[i] else None, class_="bar"),
            tag("td", _percent(accuracy[i]), class_="number", data_value=_sortable(accuracy[i])),
            tag("td", _percent(precision[i]), class_="number dim", data_value=_sortable(precision[i])),
            tag("td", f"{totals[i]:,}", class_="number dim", data_value=totals[i]),
            tag("td", other, class_="rival"),
        )
        rows.append(row)
    heads = [
        tag("th", tag("button", "class", type="button")),
        tag("th"),
        tag("th", tag("button", "accuracy", type="button"), class_="number", aria_sort="ascending"),
        tag("th", tag("button", "precision", type="button"), class_="number"),
        tag("th", tag("button", "images", type="button"), class_="number"),
        tag("th", "most often confused with", class_="rival"),
    ]
    return tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="classes")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else "—"


def _sortable(fraction: float) -> str:
    return f"{fraction:.6f}" if math.isfinite(fraction) else "2"
