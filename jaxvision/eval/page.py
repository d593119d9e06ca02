"""The report of an evaluation: metrics, mistakes and explanations."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvision import report
from jaxvision.analysis.saliency import explain, overlay
from jaxvision.augment import host, on_device
from jaxvision.augment.decoding import to_three_channels
from jaxvision.classifier import Classifier
from jaxvision.data.dataset import Dataset
from jaxvision.errors import count, printable
from jaxvision.eval.metrics import Evaluation


def describe(
    classifier: Classifier,
    result: Evaluation,
    images: Dataset,
    *,
    mistakes: int = 24,
    explanations: int = 8,
    notes: Sequence[str] = (),
    **facts: Any,
) -> report.Report:
    """Returns the report of an evaluation: metrics, the most confident mistakes, and explanations.

    Args:
      classifier: the evaluated model.
      result: its evaluation.
      images: the images it was evaluated on.
      mistakes: number of mistakes to show, the most confident first.
      explanations: number of images to explain. Up to half of them are mistakes.
      notes: remarks at the head of the page.
      **facts: further fields of `jaxvision.report.Report`.
    """
    wrong = result.mistakes(mistakes)
    explained, note = _explanations(classifier, result, images, _rows_to_explain(result, wrong, explanations))
    return report.Report(
        metrics=result.headline(),
        classes=classifier.classes,
        label=result.label,
        prediction=result.prediction,
        confidence=result.confidence,
        mistakes=[_card(result, images, row, _thumbnail(images, result.index[row], classifier)) for row in wrong],
        explanations=explained,
        explanation_method=classifier.model.explanation,
        notes=[*notes, *note],
        **facts,
    )


def _rows_to_explain(result: Evaluation, wrong: np.ndarray, n: int) -> list[int]:
    """Returns up to `n` rows: the first mistakes, then correct predictions spread over the dataset."""
    right = np.flatnonzero(result.prediction == result.label)
    if len(right):
        right = right[np.linspace(0, len(right) - 1, min(n, len(right))).astype(int)]
    half = min(len(wrong), n // 2)
    return [*wrong[:half], *right[: n - half]]


def _explanations(
    classifier: Classifier, result: Evaluation, images: Dataset, rows: Sequence[int]
) -> tuple[list[report.LabeledImage], list[str]]:
    """Returns the explained images, and a note if the model's last feature map is too small for explanations."""
    if not rows:
        return [], []
    preprocess = classifier.preprocess
    pixels = [host.eval_transform(images.image(int(result.index[row])), preprocess) for row in rows]
    inputs = on_device.normalize(np.stack(pixels), preprocess.mean, preprocess.std)
    maps = np.asarray(jax.jit(explain)(classifier.model, inputs))
    _, h, w = maps.shape
    if min(h, w) < 3:
        size = preprocess.image_size
        return [], [f"No explanations: at {size} pixels the model's last feature map is only {h} x {w}."]
    cards = []
    for row, image, heat in zip(rows, pixels, maps, strict=True):
        size = max(image.shape[0], 128)
        image = host.eval_transform(image, replace(preprocess, image_size=size, crop_pct=1.0))
        image = to_three_channels(image)
        cards.append(_card(result, images, row, image, overlay(image, heat)))
    return cards, []


def _thumbnail(images: Dataset, index: int, classifier: Classifier) -> np.ndarray:
    image = images.image(int(index))
    if max(image.shape[:2]) > 160:
        image = host.eval_transform(image, replace(classifier.preprocess, image_size=160, crop_pct=1.0))
    return to_three_channels(image)


def _card(
    result: Evaluation, images: Dataset, row: int, image: np.ndarray, over: np.ndarray | None = None
) -> report.LabeledImage:
    """Returns an image of the dataset with its label and its prediction."""
    return report.LabeledImage(
        image=image,
        overlay=over,
        true=int(result.label[row]),
        predicted=int(result.prediction[row]),
        confidence=float(result.confidence[row]),
        where=images.source.where(int(result.index[row])),
    )


def write_mistakes(folder: str | Path, classes: Sequence[str], result: Evaluation, images: Dataset) -> Path:
    """Writes ``mistakes.csv``, all wrong predictions, the most confident first; returns its path."""
    path = Path(folder) / "mistakes.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "true", "predicted", "confidence"])
        for row in result.mistakes(result.count):
            where = printable(images.source.where(int(result.index[row])))
            names = classes[result.label[row]], classes[result.prediction[row]]
            rows.writerow([where, *names, f"{result.confidence[row]:.4f}"])
    return path


def notes_on(data: Mapping[str, Dataset]) -> list[str]:
    """Returns a note for each split of the data in which damaged images were skipped."""
    return [
        f"skipped {count(len(images.corrupt), 'damaged image')} of the {name} data: "
        + ", ".join(where for where, _ in list(images.corrupt.values())[:5])
        for name, images in data.items()
        if images.corrupt
    ]
