"""The contents of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxvision.report.predictions import Predictions
from jaxvision.report.timing import Timing


@dataclass(frozen=True, kw_only=True)
class LabeledImage:
    """An image with its class and the model's prediction.

    Attributes:
      image: uint8 [h, w, 3], [h, w, 1] or [h, w].
      overlay: the same image under a heat map, of the same type and shape; only for explanations.
      true: the correct class, as a name or as an index into `Report.classes`. None: unknown.
      predicted: the predicted class, as a name or as an index into `Report.classes`. None: unknown.
      confidence: probability of the predicted class, 0 to 1. None: unknown.
      where: file name or index, so that a reader can find the image.
    """

    image: np.ndarray
    overlay: np.ndarray | None = None
    true: int | str | None = None
    predicted: int | str | None = None
    confidence: float | None = None
    where: str | int = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The contents of one report. Only the title is required; a section without contents is left out.

    Attributes:
      title: name of the model or the run.
      subtitle: one sentence about the run.
      facts: short texts by name for the head of the page, such as ``{"data": "50,000 train, 10,000 test"}``.
      metrics: final metrics by name, the most important first. ``top1``, ``top5`` and ``calibration_error`` are
        fractions, 0 to 1.
      best: metrics of the best evaluation, if it was not the last one.
      best_step: number of steps before the best evaluation.
      notes: remarks for the reader, such as a count of unreadable images.
      history: records for the curves, as `read_metrics` returns them. None reads those of the workdir.
      history_axis: what ``"step"`` counts in `history`.
      classes: class names [k]. None: the class indices serve as names.
      label: correct class of each evaluated image [n].
      prediction: predicted class of each image [n].
      confidence: probability of the predicted class, 0 to 1 [n].
      mistakes: misclassified images, the most confident first.
      explanations: images with an `overlay`.
      explanation_method: how the overlays were made, such as ``"Grad-CAM"``.
      config: sections of keys and values (nested dictionaries or a ConfigDict).
      defaults: default values in the same form; the page marks the values that differ.
      command: the command line, as one string or as arguments.
      timing: measurements of a `Clock`.
      environment: versions and devices by name. None calls `environment()`.
    """

    title: str
    subtitle: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] | None = None
    best_step: int | None = None
    notes: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] | None = None
    history_axis: str = "step"
    classes: Sequence[str] | None = None
    label: np.ndarray | None = None
    prediction: np.ndarray | None = None
    confidence: np.ndarray | None = None
    mistakes: Sequence[LabeledImage] = ()
    explanations: Sequence[LabeledImage] = ()
    explanation_method: str = "attention"
    config: Mapping[str, Any] | None = None
    defaults: Mapping[str, Any] | None = None
    command: str | Sequence[str] | None = None
    timing: Timing | None = None
    environment: Mapping[str, str] | None = None

    def predictions(self) -> Predictions | None:
        """Returns labels, predictions and confidences as one object, or None if there are none."""
        if self.label is None or self.prediction is None or not len(self.label):
            return None
        label, prediction = np.asarray(self.label), np.asarray(self.prediction)
        names = self.classes if self.classes is not None else range(int(max(label.max(), prediction.max())) + 1)
        return Predictions(
            names=[str(name) for name in names], label=label, prediction=prediction, confidence=self.confidence
        )

    def class_name(self, label: int | str | None) -> str:
        """Returns the name of a class given by name or index; "" for None."""
        if label is None:
            return ""
        if isinstance(label, str):
            return label
        names = self.classes
        return str(names[int(label)]) if names is not None and 0 <= int(label) < len(names) else str(int(label))
