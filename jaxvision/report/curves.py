"""The curves of a run: one chart per metric over training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvision.report import wording
from jaxvision.report.charts import Line, line_chart
from jaxvision.report.markup import Markup, tag

_NOT_METRICS = ("step", "epoch", "split", "time", "count")
_FIRST = ("loss", "top1", "learning_rate", "top5", "calibration_error")
_SMOOTH_FROM = 40  # points; shorter training curves are drawn as measured


def curves_section(history: Sequence[Mapping[str, Any]], *, axis: str = "step") -> Markup | None:
    """Returns one chart per metric, or None if `history` has no numbers.

    Loss, accuracy and learning rate come first; the other metrics follow in the order of the file. Each split has the
    same color in all charts.

    Args:
      history: records as `read_metrics` returns them.
      axis: what ``"step"`` counts in them.
    """
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in history:
        for name, x in record.items():
            if name not in _NOT_METRICS and isinstance(x, int | float):
                points.setdefault(name, {}).setdefault(str(record["split"]), []).append((record["step"], x))
    if not points:
        return None
    epochs = [record["epoch"] / record["step"] for record in history if record.get("epoch") and record["step"]]
    names = [name for name in _FIRST if name in points] + [name for name in points if name not in _FIRST]
    splits = list(dict.fromkeys(split for by_split in points.values() for split in by_split))
    figures = []
    for name in names:
        lines = []
        for split, measured in points[name].items():
            x, y = np.array(sorted(measured), dtype=np.float64).T
            # The loss of single steps is noisy. Evaluations and learning rates are not.
            smooth = split == "train" and len(x) > _SMOOTH_FROM and name != "learning_rate"
            lines.append(Line(name=split, x=x, y=y, color=splits.index(split), smooth=smooth))
        title = wording.label(name)
        title = title[:1].upper() + title[1:]
        per_step = epochs[-1] if epochs else None
        figures.append(line_chart(title, lines, quantity=name, epochs_per_step=per_step, axis=axis))
    return tag("div", figures, class_="charts")
