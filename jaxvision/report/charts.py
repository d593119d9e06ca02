"""Charts as inline SVG that work without a script. The page's script adds the values under the pointer.

The SVG of a plot stretches to the width of the page without scaling its strokes, and its labels are HTML. Lines stay
sharp and labels readable on a phone and on a wide screen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxvision import errors
from jaxvision.report import wording
from jaxvision.report.markup import Markup, tag

_MAX_POINTS = 400  # per line: about the width of a plot in pixels on a phone
COLORS = 6  # in page.css
_SHORT_AXIS = 6  # letters that fit beside the numbers of the axis
_MAX_DOTS = 60  # lines of at most this many points also show them as dots


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
      name: text in the legend.
      x: ascending positions [n].
      y: values [n]; NaN leaves a gap.
      color: index of the color, 0 to 5. None: the index of the line in its chart.
      smooth: whether to draw a running mean, with the measured values faintly behind it.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: int | None = None
    smooth: bool = False


def line_chart(
    title: str, lines: Sequence[Line], *, quantity: str, epochs_per_step: float | None = None, axis: str = "step"
) -> Markup:
    """Returns a chart of lines over training steps, or over another quantity.

    Args:
      title: heading of the chart.
      lines: at least one line.
      quantity: name of the metric, which determines the number format (see `wording.value`).
      epochs_per_step: factor for the epoch shown beside a step. None shows no epoch.
      axis: name of the horizontal axis.
    """
    shown = [(line, *_thin(line.x, _running_mean(line.y) if line.smooth else line.y)) for line in lines]
    x_low, x_high = _span(np.concatenate([x for _, x, _ in shown]))
    seen = [y for _, _, y in shown]
    # The measured values behind a running mean may leave the plot at their extremes.
    seen += [np.nanquantile(line.y, [0.02, 0.98]) for line in lines if line.smooth and np.isfinite(line.y).any()]
    y_low, y_high = _span(np.concatenate(seen), margin=0.06)
    if wording.is_fraction(quantity):
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
            drawn.append(tag("svg", measured, width="1000", height="1000"))  # a nested SVG clips to the plot
        drawn.append(tag("path", d=_path(*place(x, y)), class_=f"line c{color}"))
        if np.isfinite(y).sum() <= _MAX_DOTS:
            drawn.append(tag("path", d=_dots(*place(x, y)), class_=f"dots c{color}"))
        last = line.y[np.isfinite(line.y)][-1:]
        name = tag("span", line.name, class_="name")
        is_newest = last.size and axis == "step"  # over another quantity the last point is not the result
        numbers = [tag("b", wording.value(quantity, float(last[0])))] if is_newest else []
        legend.append(tag("span", tag("i", class_=f"c{color}"), name, *numbers, class_="key"))
    hover = {
        "x": [x_low, x_high],
        "y": [y_low, y_high],
        "form": "fraction" if wording.is_fraction(quantity) else "loss" if quantity.endswith("loss") else "number",
        "axis": axis,
        "epochs": epochs_per_step,
        "lines": [
            {"name": line.name, "color": _color(line, i), "x": _numbers(x), "y": _numbers(y)}
            for i, line, x, y in ((i, line, *_thin(line.x, line.y)) for i, line in enumerate(lines))
        ],
    }
    y_ticks = {(t - y_low) / (y_high - y_low): _tick(quantity, t, step) for t, step in _ticks(y_low, y_high, 4)}
    x_ticks = {(t - x_low) / (x_high - x_low): _short(t) for t, _ in _ticks(x_low, x_high, 4)}
    caption = tag("figcaption", tag("h3", title), tag("div", legend, class_="legend"))
    plot = _plot(drawn, x_ticks=x_ticks, y_ticks=y_ticks, axis=axis)
    return tag("figure", caption, plot, class_="chart", data_chart=json.dumps(hover, separators=(",", ":")))


def reliability_diagram(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> Markup:
    """Returns a chart of accuracy over confidence, above a histogram of the confidence.

    Args:
      confidence: mean confidence of each bin [bins]; ignored for empty bins.
      accuracy: accuracy in each bin, 0 to 1 [bins].
      count: number of images in each bin [bins]. The bins divide 0 to 1 into equal widths.
    """
    bins = len(count)
    edges = np.linspace(0, 1, bins + 1)
    share = count / max(count.sum(), 1)
    above, below = [], []
    for i in np.flatnonzero(count):
        low, high = edges[i], edges[i + 1]
        tip = (
            f"confidence {low:.2f} to {high:.2f}\n{errors.count(int(count[i]), 'image')} ({100 * share[i]:.1f} %)\n"
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
        tag("span", tag("i", class_="over"), "overconfident", class_="key"),
        tag("span", tag("i", class_="under"), "underconfident", class_="key"),
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
    """Returns a histogram of fractions between 0 and 1.

    Args:
      title: heading of the chart.
      values: the fractions [n]; NaN is ignored.
      bins: number of bins of equal width.
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
    """Returns a bar divided in proportion to `seconds`, with a legend."""
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


# The parts of a plot. Callers give fractions of the plot with y upwards; SVG uses thousandths with y downwards.


def _color(line: Line, index: int) -> int:
    return (index if line.color is None else line.color) % COLORS


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
        tag("div", axis, class_="axis" if len(axis) <= _SHORT_AXIS else "axis below") if axis else None,
        class_=f"plot {class_}".strip(),
    )


def _rectangle(x0: float, x1: float, y0: float, y1: float, class_: str, tip: str | None = None) -> Markup:
    x, width = 1000 * x0, 1000 * (x1 - x0)
    y, height = 1000 * (1 - y1), 1000 * (y1 - y0)
    size = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{max(height, 0):.1f}"}
    return tag("rect", **size, class_=class_, data_tip=tip)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Returns the SVG path through the points, with a gap at each y that is not finite."""
    parts, pen_down = [], False
    for a, b in zip(1000 * x, 1000 * (1 - y), strict=True):
        if not math.isfinite(b):
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}")
        pen_down = True
    return "".join(parts)


def _dots(x: np.ndarray, y: np.ndarray) -> str:
    # A line of length 0 with round ends is a dot that stays round when the plot is stretched.
    points = zip(1000 * x, 1000 * (1 - y), strict=True)
    return "".join(f"M{a:.1f} {b:.1f}h0" for a, b in points if math.isfinite(b))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns about `_MAX_POINTS` of the points: the minimum and maximum of each interval, which keeps peaks."""
    if len(x) <= _MAX_POINTS:
        return x, y
    kept = [0, len(x) - 1]
    for interval in np.array_split(np.arange(len(x)), _MAX_POINTS // 2):
        finite = interval[np.isfinite(y[interval])]
        # An interval of NaN keeps one of them, so that the gap stays visible.
        kept += [finite[y[finite].argmin()], finite[y[finite].argmax()]] if finite.size else [interval[0]]
    index = np.unique(kept)
    return x[index], y[index]


def _running_mean(y: np.ndarray) -> np.ndarray:
    """Returns the bias-corrected exponential mean over about a fortieth of the points."""
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
    if low == high:  # center a single value
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, about: int) -> list[tuple[float, float]]:
    """Returns about `about` pairs (tick, distance of ticks) at round numbers between `low` and `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, step) for i in range(first, last + 1)]


def _tick(quantity: str, tick: float, step: float) -> str:
    if wording.is_fraction(quantity):
        percent = 100 * step
        decimals = next(n for n in range(20) if math.isclose(percent * 10**n, round(percent * 10**n)))  # 2.5 needs one
        return f"{100 * tick:.{decimals}f} %"
    return _short(tick)


def _short(x: float) -> str:
    """Returns a short form of a number, such as 1.5k for 1500."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= power:
            return f"{x / power:g}{letter}"
    return f"{x:.6g}"  # all digits of a round number, without those of rounding


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]
