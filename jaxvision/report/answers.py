"""What the model answered, class by class: confusions, accuracies, and how sure it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxvision.report.charts import histogram, reliability_diagram
from jaxvision.report.markup import Markup, join, palette_uri, script_data, tag

# A page of 1000 classes stays below 5 MB by these.
_MOST_TABLE_CLASSES = 20  # a confusion matrix of more classes is a picture, not a table
_MOST_PICTURE_CLASSES = 1200  # and of more than these there is none: ImageNet-21k's would have 477 million cells
_PICTURE_SIDE = 250  # about so many pixels; several classes share one where there are more
_MOST_CELLS = 60_000  # cells of that picture that have their count under the pointer
_MOST_ROWS = 1200  # of the table of classes
_PAIRS = 12
BINS = 15  # of confidence, as in the paper that proposed the calibration error


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model answered for n images, and what derives from it.

    Attributes:
      names: of the classes [k].
      label: the right class of each image [n].
      prediction: the answer [n].
      confidence: the probability of the answer, 0 to 1 [n]; None: not known.
    """

    names: Sequence[str]
    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        k = len(self.names)
        for name in ("label", "prediction", "confidence"):
            x = getattr(self, name)
            if x is not None and np.shape(x) != np.shape(self.label):
                raise ValueError(f"{name} is {list(np.shape(x))}, but label is {list(np.shape(self.label))}")
            if name != "confidence" and len(x) and not 0 <= np.min(x) <= np.max(x) < k:
                raise ValueError(f"{name} is from {np.min(x)} to {np.max(x)}, but there are {k} names of classes")

    def totals(self) -> np.ndarray:
        """Returns the images of each class [k]."""
        return np.bincount(self.label, minlength=len(self.names))

    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns right class, answer and count of each cell of the confusion matrix that is not empty, row by row.

        The matrix itself is mostly empty where there are many classes, and too large where there are very many.
        """
        k = len(self.names)
        cell, count = np.unique(self.label.astype(np.int64) * k + self.prediction, return_counts=True)
        return cell // k, cell % k, count

    def matrix(self) -> np.ndarray:
        """Returns the confusion matrix [k, k]: rows are the right classes, columns the answers."""
        counts = np.zeros((len(self.names), len(self.names)), np.int64)
        row, column, count = self.cells()
        counts[row, column] = count
        return counts

    def calibration(self, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns mean confidence, accuracy and images of each bin of confidence [bins].

        The bins are (0, 1/bins], (1/bins, 2/bins], ...; both means are 0 in an empty bin.
        """
        assert self.confidence is not None
        confidence = np.nan_to_num(np.asarray(self.confidence, np.float64))  # NaN, of a model that diverged, is none
        which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        count = np.bincount(which, minlength=bins)
        sums = (np.bincount(which, weights=x, minlength=bins) for x in (confidence, self.prediction == self.label))
        mean, accuracy = (x / np.maximum(count, 1) for x in sums)
        return mean, accuracy, count


def meter(share: float, kind: str) -> Markup:
    """Returns a small bar that is filled to `share`; the kind is ``"right"`` or ``"wrong"``."""
    return tag("span", tag("span", style=f"width:{100 * share:.1f}%", class_=kind), class_="meter")


def confusions_section(answers: Answers) -> Markup:
    """Returns the confusion matrix, as fits its size, beside the pairs of classes that were confused most often."""
    k = len(answers.names)
    matrix = None
    if k <= _MOST_PICTURE_CLASSES:
        matrix = tag(
            "figure",
            tag("figcaption", tag("h3", "Who was taken for whom"), tag("div", _MATRIX_LEGEND, class_="legend")),
            _matrix_table(answers) if k <= _MOST_TABLE_CLASSES else _matrix_picture(answers),
            class_="chart",
        )
    return tag("div", matrix, _pairs(answers), class_="halves" if matrix else None)


_MATRIX_LEGEND = (
    tag("span", tag("i", class_="right"), "right", class_="key"),
    tag("span", tag("i", class_="wrong"), "mistaken", class_="key"),
)


def _strengths(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each cell's share of its row, and how strongly to color it, both [k, k] and 0 to 1.

    Mistakes are colored relative to the worst one: of an accurate model they would not be seen otherwise.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    worst = shares[~right].max(initial=0.0)
    return shares, np.where(right | (worst == 0), shares, shares / (worst or 1.0))


def _matrix_table(answers: Answers) -> Markup:
    counts, names = answers.matrix(), answers.names
    shares, strengths = _strengths(counts)
    strengths = strengths**0.7
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, answer in enumerate(names):
            n = int(counts[i, j])
            what = f"{name} taken for {answer}" if i != j else f"{name} recognized"
            cell = tag(
                "td",
                f"{n:,}" if n else "",
                class_="right" if i == j else "wrong",
                style=f"--v:{strengths[i, j]:.3f}" if n else None,
                data_count=n,
                data_strong=bool(strengths[i, j] > 0.55),
                data_tip=f"{what}\n{n:,} of {int(counts[i].sum()):,} images, {100 * shares[i, j]:.1f} %",
            )
            cells.append(cell)
        rows.append(tag("tr", tag("th", tag("span", name), scope="row", title=name), cells))
    columns = [tag("th", tag("span", name), scope="col", title=name) for name in names]
    head = tag("thead", tag("tr", tag("td", tag("span", "true ↓  predicted →")), columns))
    return tag(
        "div",
        tag("table", head, tag("tbody", rows), class_="confusion", style=f"--k:{len(names)}"),
        class_="scroll",
    )


# Colors of the picture: 0 is nothing, 1 to 127 ever more of right, 128 to 255 ever more of mistaken. The paper shines
# through the weak ones, so that one picture serves light and dark.
_PALETTE = np.zeros((256, 4), np.uint8)
_PALETTE[1:128] = (59, 108, 244, 0)
_PALETTE[128:] = (226, 85, 50, 0)
_PALETTE[1:128, 3] = np.linspace(40, 255, 127)
_PALETTE[128:, 3] = np.linspace(60, 255, 128)


def _matrix_picture(answers: Answers) -> Markup:
    counts, k = answers.matrix(), len(answers.names)
    _, strengths = _strengths(counts)
    strengths = np.sqrt(strengths)  # or single mistakes among hundreds of classes would not be seen
    right = np.eye(k, dtype=bool)
    # Where several classes share a pixel the strongest shows: thinner dots are lost on a screen.
    pool = max(k // _PICTURE_SIDE, 1)
    levels = _pool(np.where(~right & (counts > 0), 128 + np.floor(127 * strengths), 0), pool)
    np.fill_diagonal(levels, _pool(np.where(right, np.ceil(127 * strengths), 0), pool).diagonal())

    row, column, count = answers.cells()
    if len(row) > _MOST_CELLS:
        kept = np.sort(np.argsort(-count, kind="stable")[:_MOST_CELLS])
        row, column, count = row[kept], column[kept], count[kept]
    cells: list[list[int]] = [[] for _ in range(k)]
    for i, j, n in zip(row.tolist(), column.tolist(), count.tolist(), strict=True):
        cells[i] += [j, n]
    data = {"names": list(answers.names), "totals": answers.totals().tolist(), "cells": cells, "pool": pool}
    image = tag(
        "img",
        src=palette_uri(levels.astype(np.uint8), _PALETTE),
        alt=f"confusion matrix of {k} classes",
        width=len(levels),
        height=len(levels),
    )
    note = "Rows: the right class. Columns: the answer. Point at a dot for its numbers."
    return tag(
        "div",
        tag("div", image, tag("i", class_="target"), class_="heat"),
        tag("p", note, class_="hint"),
        script_data(data, class_="cells"),
        class_="matrix",
    )


def _pool(levels: np.ndarray, size: int) -> np.ndarray:
    """Returns the maximum of each square of `size` by `size` cells."""
    levels = np.pad(levels, (0, -len(levels) % size))
    side = len(levels) // size
    return levels.reshape(side, size, side, size).max(axis=(1, 3))


def _mistakes(answers: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the cells off the diagonal, the fullest first."""
    row, column, count = answers.cells()
    wrong = np.flatnonzero(row != column)
    wrong = wrong[np.argsort(-count[wrong], kind="stable")]
    return row[wrong], column[wrong], count[wrong]


def _pairs(answers: Answers) -> Markup:
    names, totals = answers.names, answers.totals()
    pairs = [(int(i), int(j), int(n)) for i, j, n in zip(*(x[:_PAIRS] for x in _mistakes(answers)), strict=True)]
    if not pairs:
        return tag("p", "No mistakes at all.")
    rows = [
        tag(
            "tr",
            tag("td", tag("span", names[i], class_="class"), " ", tag("span", f"→ {names[j]}", class_="class")),
            tag("td", meter(n / pairs[0][2], "wrong"), class_="bar"),
            tag("td", f"{n:,}", class_="number"),
            tag("td", f"{100 * n / totals[i]:.1f} %", class_="number dim"),
            data_pair=f"{i},{j}",
        )
        for i, j, n in pairs
    ]
    heads = [tag("th", "true → predicted"), tag("th")]
    heads += [tag("th", text, class_="number") for text in ("images", "of class")]
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="pairs")
    return tag("figure", tag("figcaption", tag("h3", "Most often confused")), table, class_="chart")


def classes_section(answers: Answers) -> Markup:
    """Returns the accuracy of each class, the worst first; searchable where there are many."""
    k, names, totals = len(answers.names), answers.names, answers.totals()
    hits = np.bincount(answers.label[answers.label == answers.prediction], minlength=k)
    answered = np.bincount(answers.prediction, minlength=k)
    accuracy = np.where(totals > 0, hits / np.maximum(totals, 1), np.nan)
    precision = np.where(answered > 0, hits / np.maximum(answered, 1), np.nan)
    rivals: dict[int, tuple[int, int]] = {}
    for i, j, n in zip(*(x.tolist() for x in _mistakes(answers)), strict=True):
        rivals.setdefault(i, (j, n))  # the fullest comes first

    # The worst first: that is where the work is. Classes without images come last.
    order = np.argsort(np.where(totals > 0, accuracy, 2.0), kind="stable")[:_MOST_ROWS].tolist()
    rows = []
    for i in order:
        rival = [names[rivals[i][0]], tag("small", f" {rivals[i][1]:,}")] if i in rivals else []
        row = tag(
            "tr",
            tag("td", tag("span", names[i], class_="class"), title=names[i], data_value=names[i].lower()),
            tag("td", meter(accuracy[i], "right") if totals[i] else None, class_="bar"),
            tag("td", _percent(accuracy[i]), class_="number", data_value=_sortable(accuracy[i])),
            tag("td", _percent(precision[i]), class_="number dim", data_value=_sortable(precision[i])),
            tag("td", f"{totals[i]:,}", class_="number dim", data_value=totals[i]),
            tag("td", rival, class_="rival"),
        )
        rows.append(row)
    heads = [
        tag("th", tag("button", "class", type="button")),
        tag("th"),
        tag("th", tag("button", "accuracy", type="button"), class_="number", aria_sort="ascending"),
        tag("th", tag("button", "precision", type="button"), class_="number"),
        tag("th", tag("button", "images", type="button"), class_="number"),
        tag("th", "most often taken for", class_="rival"),
    ]
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="classes")

    lead = f"On average {100 * accuracy[totals > 0].mean():.2f} % of a class is recognized."
    if k > len(rows):
        lead += f" The worst {len(rows):,} of {k:,} classes are listed."
    if k <= _MOST_TABLE_CLASSES:
        return join([tag("p", lead, class_="lead"), tag("div", table, class_="scroll")])

    def describe(n: int, low: float, high: float) -> str:
        return f"{n:,} classes\naccuracy {100 * low:.0f} to {100 * high:.0f} %"

    search = tag("input", type="search", placeholder=f"Find among {len(rows):,} classes", aria_label="find a class")
    return join(
        [
            tag("p", lead, class_="lead"),
            histogram("Classes by accuracy", accuracy, describe=describe),
            tag("div", search, class_="search"),
            tag("div", table, class_="scroll tall"),
        ]
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "—"


def _sortable(share: float) -> str:
    return f"{share:.6f}" if math.isfinite(share) else "2"


def calibration_section(answers: Answers) -> Markup | None:
    """Returns the reliability diagram and the expected calibration error, in words too; None without confidences."""
    if answers.confidence is None:
        return None
    confidence, accuracy, count = answers.calibration()
    gap, share = confidence - accuracy, count / count.sum()
    error, bias = 100 * float(np.sum(share * np.abs(gap))), 100 * float(np.sum(share * gap))
    if error < 0.5:
        verdict = "The model is as sure as it is right."
    elif abs(bias) < 0.5:
        verdict = "The model is too sure in some cases and not sure enough in others; on the whole that evens out."
    elif bias > 0:
        verdict = f"The model is too sure of itself: by {bias:.1f} percentage points on average."
    else:
        verdict = f"The model is right more often than it believes: by {-bias:.1f} percentage points on average."
    hint = (
        "Expected calibration error: how far confidence and accuracy are apart, averaged over the images. On the "
        "dashed line, answers given with 80 % confidence are right 80 % of the time. The gray bars show how many "
        "answers were given with each confidence."
    )
    number = tag("p", tag("b", f"{error:.2f}", tag("span", "%", class_="unit")), class_="big")
    text = tag("div", number, tag("p", verdict), tag("p", hint, class_="hint"))
    return tag("div", reliability_diagram(confidence, accuracy, count), text, class_="halves")
