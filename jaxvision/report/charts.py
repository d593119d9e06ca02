"""Charts as inline SVG that need no script; the page's script adds the values under the pointer.

A plot's SVG is stretched to the width of the page (strokes keep theirs), and its texts are HTML beside it: so lines
are crisp and texts readable on a phone and on a wide screen alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxvision.report import wording
from jaxvision.report.markup import Markup, tag

_MOST_POINTS = 400  # per line: more than a plot is wide in pixels on a phone, less than anyone can tell apart
COLORS = 6  # of the style sheet
_FEW_POINTS = 60  # up to so many are drawn as dots, too


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
      name: for the legend.
      x: ascending [n].
      y: [n]; NaN leaves a gap.
      color: 0 to 5; None: the line's place in the chart.
      smooth: draw a running mean, and what was measured faintly behind it.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: int | None = None
    smooth: bool = False


def line_chart(title: str, lines: Sequence[Line], *, quantity: str, epochs_per_step: float | None = None) -> Markup:
    """Returns lines over training steps.

    Args:
      title: what is shown.
      lines: at least one.
      quantity: name of the value, which decides how numbers are written (see `wording.value`).
      epochs_per_step: to show the epoch too; None: do not.
    """
    shown = [(line, *_thin(line.x, _running_mean(line.y) if line.smooth else line.y)) for line in lines]
    x_low, x_high = _span(np.concatenate([x for _, x, _ in shown]))
    seen = [y for _, _, y in shown]
    # What was measured behind a running mean may leave the plot where it is extreme.
    seen += [np.nanquantile(line.y, [0.02, 0.98]) for line in lines if line.smooth and np.isfinite(line.y).any()]
    y_low, y_high = _span(np.concatenate(seen), margin=0.06)
    if wording.is_share(quantity):
        y_low, y_high = max(y_low, 0.0), min(y_high, 1.0)
    elif min(np.nanmin(y, initial=0.0) for y in seen) >= 0:
        y_low = max(y_low, 0.0)

    def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)

    drawn, legend = [], []
    for i, (line, x, y) in enumerate(shown):
        color = _color(line, i)
        if line.smooth:
            measured = tag("path", d=_path(*place(*_thin(line.x, line.y))), class_=f"line faint c{color}")
            drawn.append(
                tag("svg", measured, width="1000", height="1000")
            )  # an SVG of its own clips what leaves the plot
        drawn.append(tag("path", d=_path(*place(x, y)), class_=f"line c{color}"))
        if np.isfinite(y).sum() <= _FEW_POINTS:
            drawn.append(tag("path", d=_dots(*place(x, y)), class_=f"dots c{color}"))
        last = line.y[np.isfinite(line.y)][-1:]
        name = tag("span", line.name, class_="name")
        numbers = [tag("b", wording.value(quantity, float(last[0])))] if last.size else []
        legend.append(tag("span", tag("i", class_=f"c{color}"), name, *numbers, class_="key"))
    hover = {
        "x": [x_low, x_high],
        "y": [y_low, y_high],
        "form": "share" if wording.is_share(quantity) else "loss" if quantity.endswith("loss") else "number",
        "epochs": epochs_per_step,
        "lines": [
            {"name": line.name, "color": _color(line, i), "x": _numbers(x), "y": _numbers(y)}
            for i, line, x, y in ((i, line, *_thin(line.x, line.y)) for i, line in enumerate(lines))
        ],
    }
    y_ticks = {(t - y_low) / (y_high - y_low): _tick(quantity, t, step) for t, step in _ticks(y_low, y_high, 4)}
    x_ticks = {(t - x_low) / (x_high - x_low): _short(t) for t, _ in _ticks(x_low, x_high, 4)}
    caption = tag("figcaption", tag("h3", title), tag("div", legend, class_="legend"))
    plot = _plot(drawn, x_ticks=x_ticks, y_ticks=y_ticks, axis="step")
    return tag("figure", caption, plot, class_="chart", data_chart=json.dumps(hover, separators=(",", ":")))


def reliability_diagram(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> Markup:
    """Returns accuracy over confidence in bins of equal width, and how many images each bin holds.

    Args:
      confidence: mean confidence of each bin [bins]; not looked at where a bin is empty.
      accuracy: share of right answers in each bin [bins].
      count: images in each bin [bins].
    """
    bins = len(count)
    edges = np.linspace(0, 1, bins + 1)
    share = count / max(count.sum(), 1)
    above, below = [], []
    for i in np.flatnonzero(count):
        low, high = edges[i], edges[i + 1]
        tip = (
            f"confidence {low:.2f} to {high:.2f}\n{int(count[i]):,} images ({100 * share[i]:.1f} %)\n"
            f"mean confidence {100 * confidence[i]:.1f} %\naccuracy {100 * accuracy[i]:.1f} %"
        )
        gap = sorted((confidence[i], accuracy[i]))
        above += [
            _rectangle(low, high, 0, accuracy[i], "bar c0"),
            _rectangle(low, high, gap[0], gap[1], "over" if confidence[i] > accuracy[i] else "under"),
            _rectangle(low, high, 0, 1, "touch", tip),
        ]
        below += [
            _rectangle(low, high, 0, share[i] / share.max(), "bar faint"),
            _rectangle(low, high, 0, 1, "touch", tip),
        ]
    above.append(tag("path", d="M0 1000L1000 0", class_="diagonal"))
    percent = {t: f"{100 * t:.0f} %" for t in (0.0, 0.25, 0.5, 0.75, 1.0)}
    legend = [
        tag("span", tag("i", class_="c0"), "accuracy", class_="key"),
        tag("span", tag("i", class_="over"), "too sure", class_="key"),
        tag("span", tag("i", class_="under"), "not sure enough", class_="key"),
    ]
    return tag(
        "figure",
        tag("figcaption", tag("h3", "Accuracy by confidence"), tag("div", legend, class_="legend")),
        _plot(above, x_ticks={}, y_ticks=percent, class_="square"),
        _plot(below, x_ticks=percent, y_ticks={}, class_="low"),
        class_="chart reliability",
    )


def histogram(
    title: str, values: np.ndarray, *, bins: int = 20, describe: Callable[[int, float, float], str]
) -> Markup:
    """Returns how shares between 0 and 1 spread.

    Args:
      title: what is shown.
      values: the shares [n]; NaN is left out.
      bins: how many, of equal width.
      describe: (count, low, high) -> text under the pointer.
    """
    count, edges = np.histogram(values[np.isfinite(values)], bins=bins, range=(0, 1))
    drawn = []
    for n, low, high in zip(count, edges[:-1], edges[1:], strict=True):
        drawn.append(_rectangle(low, high, 0, n / max(count.max(), 1), "bar c0"))
        drawn.append(_rectangle(low, high, 0, 1, "touch", describe(int(n), float(low), float(high))))
    percent = {t: f"{100 * t:.0f} %" for t in (0.0, 0.25, 0.5, 0.75, 1.0)}
    top = float(max(count.max(), 1))
    y_ticks = {t / top: f"{t:,.0f}" for t, _ in _ticks(0, top, 4) if t == int(t)}
    return tag(
        "figure",
        tag("figcaption", tag("h3", title)),
        _plot(drawn, x_ticks=percent, y_ticks=y_ticks),
        class_="chart",
    )


def stacked_bar(seconds: Mapping[str, float]) -> Markup:
    """Returns one bar that is divided as the time was, with a legend."""
    total = sum(seconds.values()) or 1.0
    parts, legend = [], []
    for color, (name, x) in enumerate(seconds.items()):
        share = f"{100 * x / total:.1f} %"
        tip = f"{name}\n{wording.duration(x)}, {share}"
        parts.append(tag("span", class_=f"c{color % COLORS}", style=f"flex-grow:{x / total:.5f}", data_tip=tip))
        key = [
            tag("i", class_=f"c{color % COLORS}"),
            tag("span", name, class_="name"),
            tag("b", wording.duration(x)),
            f" {share}",
        ]
        legend.append(tag("span", key, class_="key"))
    return tag("figure", tag("div", parts, class_="stacked"), tag("div", legend, class_="legend"), class_="chart")


# The parts of a plot. Fractions of the plot, y upwards, become SVG's thousandths, y downwards.


def _color(line: Line, place: int) -> int:
    return (place if line.color is None else line.color) % COLORS


def _plot(
    drawn: Sequence[Markup],
    *,
    x_ticks: Mapping[float, str],
    y_ticks: Mapping[float, str],
    class_: str = "",
    axis: str | None = None,
) -> Markup:
    grid = [tag("path", d=f"M0 {1000 - 1000 * y:.1f}h1000", class_="grid") for y in y_ticks]
    svg = tag("svg", grid, drawn, viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true")
    return tag(
        "div",
        tag("div", [tag("span", t, style=f"bottom:{100 * y:.2f}%") for y, t in y_ticks.items()], class_="y-ticks"),
        tag("div", svg, class_="area"),
        tag("div", [tag("span", t, style=f"left:{100 * x:.2f}%") for x, t in x_ticks.items()], class_="x-ticks"),
        tag("div", axis, class_="axis") if axis else None,
        class_=f"plot {class_}".strip(),
    )


def _rectangle(x0: float, x1: float, y0: float, y1: float, class_: str, tip: str | None = None) -> Markup:
    x, width = 1000 * x0, 1000 * (x1 - x0)
    y, height = 1000 * (1 - y1), 1000 * (y1 - y0)
    size = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{max(height, 0):.1f}"}
    return tag("rect", **size, class_=class_, data_tip=tip)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Returns the SVG path through the points, with a gap where y is not finite."""
    parts, pen_down = [], False
    for a, b in zip(1000 * x, 1000 * (1 - y), strict=True):
        if not math.isfinite(b):
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}")
        pen_down = True
    return "".join(parts)


def _dots(x: np.ndarray, y: np.ndarray) -> str:
    # A line of no length with round ends is a dot that stays round however the plot is stretched.
    points = zip(1000 * x, 1000 * (1 - y), strict=True)
    return "".join(f"M{a:.1f} {b:.1f}h0" for a, b in points if math.isfinite(b))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most about `_MOST_POINTS` of the points: of each stretch the lowest and the highest, so peaks stay."""
    if len(x) <= _MOST_POINTS:
        return x, y
    kept = [0, len(x) - 1]
    for stretch in np.array_split(np.arange(len(x)), _MOST_POINTS // 2):
        finite = stretch[np.isfinite(y[stretch])]
        # A stretch of NaN keeps one of them: the gap is to be seen.
        kept += [finite[y[finite].argmin()], finite[y[finite].argmax()]] if finite.size else [stretch[0]]
    index = np.unique(kept)
    return x[index], y[index]


def _running_mean(y: np.ndarray) -> np.ndarray:
    """Returns the exponential mean over about a fortieth of the points, without the pull of its start."""
    keep = 1 - 1 / max(len(y) / 40, 1)
    total = weight = 0.0
    out = np.full(len(y), np.nan)
    for i, value in enumerate(y):
        if math.isfinite(value):
            total = keep * total + (1 - keep) * value
            weight = keep * weight + (1 - keep)
            out[i] = total / weight
    return out


def _span(values: np.ndarray, *, margin: float = 0.0) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if low == high:  # a single value sits in the middle
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, about: int) -> list[tuple[float, float]]:
    """Returns (tick, distance) at round numbers between `low` and `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, step) for i in range(first, last + 1)]


def _tick(quantity: str, tick: float, step: float) -> str:
    if wording.is_share(quantity):
        decimals = max(0, -math.floor(math.log10(100 * step) + 1e-9))
        return f"{100 * tick:.{decimals}f} %"
    return _short(tick)


def _short(x: float) -> str:
    """Returns a number as a tick has room for it: 1500 as 1.5k."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= power:
            return f"{x / power:g}{letter}"
    return f"{x:.3g}"


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]
