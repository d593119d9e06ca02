"""Calibration of an evaluation: whether confidence matches accuracy."""

from __future__ import annotations

import numpy as np

from jaxvision.report.charts import reliability_diagram
from jaxvision.report.markup import Markup, tag
from jaxvision.report.predictions import Predictions

_HINT = (
    "This number is the expected calibration error, the mean absolute difference between confidence and accuracy. On "
    "the dashed line, predictions with 80 % confidence are correct 80 % of the time. The gray bars show how many "
    "predictions have each confidence."
)


def calibration_section(predictions: Predictions) -> Markup | None:
    """Returns the reliability diagram and the expected calibration error, or None without confidences."""
    if predictions.confidence is None:
        return None
    confidence, accuracy, count = predictions.calibration()
    gap, share = confidence - accuracy, count / count.sum()
    error, bias = 100 * float(np.sum(share * np.abs(gap))), 100 * float(np.sum(share * gap))
    if error < 0.5:
        verdict = "Well calibrated: confidence matches accuracy."
    elif abs(bias) < 0.5:
        verdict = "Overconfident for some predictions and underconfident for others; on average the two cancel."
    elif bias > 0:
        verdict = f"Overconfident: confidence exceeds accuracy by {bias:.1f} percentage points on average."
    else:
        verdict = f"Underconfident: accuracy exceeds confidence by {-bias:.1f} percentage points on average."
    number = tag("p", tag("b", f"{error:.2f}", tag("span", "%", class_="unit")), class_="big")
    text = tag("div", number, tag("p", verdict), tag("p", _HINT, class_="hint"))
    return tag("div", reliability_diagram(confidence, accuracy, count), text, class_="halves")
