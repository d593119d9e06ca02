"""The confusion matrix of an evaluation, as a table or an image, and its most frequent mistakes."""

from __future__ import annotations

import numpy as np

from jaxvision.report.markup import Markup, meter, palette_uri, script_data, tag
from jaxvision.report.predictions import Predictions

# These limits keep a page of 1,000 classes below 5 MB, together with those in gallery.py and classes.py.
MAX_TABLE_CLASSES = 20  # with more classes the matrix is an image instead of a table
_MAX_IMAGE_CLASSES = 1200  # with even more there is no matrix: that of ImageNet-21k would have 477 million cells
_IMAGE_SIDE = 250  # pixels; with more classes several share a pixel
_MAX_CELLS = 60_000  # cells of the image that show their count under the pointer
_PAIRS = 12

# Palette of the image: 0 is transparent, 1 to 127 increasing shades of correct, 128 to 255 of wrong. The weak shades
# are partly transparent, so that one image suits the light and the dark page.
_PALETTE = np.zeros((256, 4), np.uint8)
_PALETTE[1:128] = (59, 108, 244, 0)
_PALETTE[128:] = (226, 85, 50, 0)
_PALETTE[1:128, 3] = np.linspace(40, 255, 127)
_PALETTE[128:, 3] = np.linspace(60, 255, 128)


def confusions_section(predictions: Predictions) -> Markup:
    """Returns the confusion matrix beside the pairs of classes that were confused most often.

    Up to 20 classes it is a table, up to 1,200 an image; with more classes only the pairs are shown.
    """
    k = len(predictions.names)
    matrix = None
    if k <= _MAX_IMAGE_CLASSES:
        legend = tag(
            "div",
            tag("span", tag("i", class_="right"), "correct", class_="key"),
            tag("span", tag("i", class_="wrong"), "wrong", class_="key"),
            class_="legend",
        )
        matrix = tag(
            "figure",
            tag("figcaption", tag("h3", "Confusion matrix"), legend),
            _matrix_table(predictions) if k <= MAX_TABLE_CLASSES else _matrix_image(predictions),
            class_="chart",
        )
    return tag("div", matrix, _frequent_mistakes(predictions), class_="halves" if matrix else None)


def _strengths(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each cell's fraction of its row, and the strength of its color; both [k, k], 0 to 1.

    Mistakes are scaled by the most frequent one, because those of an accurate model would otherwise be invisible.
    """
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    correct = np.eye(len(counts), dtype=bool)
    worst = fractions[~correct].max(initial=0.0)
    return fractions, np.where(correct | (worst == 0), fractions, fractions / (worst or 1.0))


def _matrix_table(predictions: Predictions) -> Markup:
    counts, names = predictions.matrix(), predictions.names
    fractions, strengths = _strengths(counts)
    strengths = strengths**0.7
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, predicted in enumerate(names):
            n = int(counts[i, j])
            what = f"{name} predicted as {predicted}" if i != j else f"{name} predicted correctly"
            cell = tag(
                "td",
                f"{n:,}" if n else "",
                class_="right" if i == j else "wrong",
                style=f"--v:{strengths[i, j]:.3f}" if n else None,
                data_count=n,
                data_strong=bool(strengths[i, j] > 0.55),
                data_tip=f"{what}\n{n:,} of {int(counts[i].sum()):,} images, {100 * fractions[i, j]:.1f} %",
            )
            cells.append(cell)
        rows.append(tag("tr", tag("th", tag("span", name), scope="row", title=name), cells))
    columns = [tag("th", tag("span", name), scope="col", title=name) for name in names]
    head = tag("thead", tag("tr", tag("td", tag("span", "true ↓  predicted →")), columns))
    table = tag("table", head, tag("tbody", rows), class_="confusion", style=f"--k:{len(names)}")
    return tag("div", table, class_="scroll")


def _matrix_image(predictions: Predictions) -> Markup:
    counts, k = predictions.matrix(), len(predictions.names)
    _, strengths = _strengths(counts)
    strengths = np.sqrt(strengths)  # makes single mistakes among hundreds of classes visible
    correct = np.eye(k, dtype=bool)
    # A pixel of several classes shows the strongest of their cells, so that single mistakes stay visible.
    pool = max(k // _IMAGE_SIDE, 1)
    levels = _max_pool(np.where(~correct & (counts > 0), 128 + np.floor(127 * strengths), 0), pool)
    np.fill_diagonal(levels, _max_pool(np.where(correct, np.ceil(127 * strengths), 0), pool).diagonal())

    row, column, count = predictions.cells()
    if len(row) > _MAX_CELLS:
        kept = np.sort(np.argsort(-count, kind="stable")[:_MAX_CELLS])
        row, column, count = row[kept], column[kept], count[kept]
    cells: list[list[int]] = [[] for _ in range(k)]
    for i, j, n in zip(row.tolist(), column.tolist(), count.tolist(), strict=True):
        cells[i] += [j, n]
    data = {"names": list(predictions.names), "totals": predictions.totals().tolist(), "cells": cells, "pool": pool}
    image = tag(
        "img",
        src=palette_uri(levels.astype(np.uint8), _PALETTE),
        alt=f"confusion matrix of {k} classes",
        width=len(levels),
        height=len(levels),
    )
    hint = "Rows are the true classes, columns the predictions. Point at a dot to see its count."
    return tag(
        "div",
        tag("div", image, tag("i", class_="target"), class_="heat"),
        tag("p", hint, class_="hint"),
        script_data(data, class_="cells"),
        class_="matrix",
    )


def _max_pool(levels: np.ndarray, size: int) -> np.ndarray:
    """Returns the maximum of each square of `size` by `size` cells."""
    levels = np.pad(levels, (0, -len(levels) % size))
    side = len(levels) // size
    return levels.reshape(side, size, side, size).max(axis=(1, 3))


def _frequent_mistakes(predictions: Predictions) -> Markup:
    names, totals = predictions.names, predictions.totals()
    pairs = [(int(i), int(j), int(n)) for i, j, n in zip(*(x[:_PAIRS] for x in predictions.mistakes()), strict=True)]
    if not pairs:
        return tag("p", "No mistakes.")
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
    return tag("figure", tag("figcaption", tag("h3", "Most frequent mistakes")), table, class_="chart")
