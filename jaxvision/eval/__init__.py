"""Evaluation: metrics of a classifier on a dataset, and the report."""

from __future__ import annotations

from jaxvision.eval.evaluate import evaluate, fit_ensemble
from jaxvision.eval.metrics import Evaluation, calibration_error, with_metric
from jaxvision.eval.statistics import measure_statistics
from jaxvision.eval.step import evaluate_batches, make_eval_step

__all__ = [
    "Evaluation",
    "calibration_error",
    "evaluate",
    "evaluate_batches",
    "fit_ensemble",
    "make_eval_step",
    "measure_statistics",
    "with_metric",
]
