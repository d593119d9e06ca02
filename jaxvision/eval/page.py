"""An evaluation as a report: numbers, mistakes as pictures, and where the model looked."""

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
from jaxvision.augment import on_device
from jaxvision.classifier import Classifier
from jaxvision.data import pipeline
from jaxvision.eval.metrics import Evaluation


def describe(
    classifier: Classifier,
    result: Evaluation,
    pictures: pipeline.Pictures,
    *,
    mistakes: int = 24,
    explanations: int = 8,
    **facts: Any,
) -> report.Report:
    """Returns the report's page on an evaluation: numbers, mistakes as pictures, and where the model looked.

    Args:
      classifier: what was evaluated.
      result: what came out.
      pictures: what it was evaluated on.
      mistakes: how many of the most confident ones are shown.
      explanations: how many pictures are explained: half of them mistakes, where there are that many.
      **facts: further fields of `jaxvision.report.Report`.
    """
    model, preprocess = classifier.model, classifier.preprocess
    whole = replace(preprocess, image_size=max(preprocess.image_size, 96), crop_pct=1.0)

    def picture(row: int, over: np.ndarray | None = None, image: np.ndarray | None = None) -> report.LabeledImage:
        index = int(result.index[row])
        if image is None:
            image = pictures.picture(index)
            if max(image.shape[:2]) > 160:
                image = pipeline.host.eval_transform(image, replace(whole, image_size=160))
        return report.LabeledImage(
            image=image,
            overlay=over,
            true=int(result.label[row]),
            predicted=int(result.prediction[row]),
            confidence=float(result.confidence[row]),
            where=pictures.source.where(index),
        )

    wrong = result.mistakes(mistakes)
    right = np.flatnonzero(result.prediction == result.label)
    spread = right[np.linspace(0, len(right) - 1, min(explanations, len(right))).astype(int)] if len(right) else right
    half = min(len(wrong), explanations // 2)
    explained = [*wrong[:half], *spread[: explanations - half]]
    shown: list[report.LabeledImage] = []
    notes = [*facts.pop("notes", [])]
    if explained:
        pixels = np.stack(
            [pipeline.host.eval_transform(pictures.picture(int(result.index[row])), preprocess) for row in explained]
        )
        images = on_device.normalize(pixels, preprocess.mean, preprocess.std)
        heats = np.asarray(jax.jit(explain)(model, images))
        grid = heats.shape[1:]
        if min(grid) < 3:
            where = f"at {preprocess.image_size} pixels its last map is {grid[0]} x {grid[1]}"
            notes.append(f"Where the model looked is not shown: {where}.")
            explained, pixels, heats = [], pixels[:0], heats[:0]
        for row, image, heat in zip(explained, pixels, heats, strict=True):
            image = pipeline.host.eval_transform(image, replace(whole, image_size=max(image.shape[0], 128)))
            image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
            shown.append(picture(row, over=overlay(image, heat), image=image))
    return report.Report(
        metrics=headline(result),
        classes=classifier.classes,
        label=result.label,
        prediction=result.prediction,
        confidence=result.confidence,
        mistakes=[picture(row) for row in wrong],
        explanations=shown,
        explanation_method="attention rollout" if model.family == "vit" else "Grad-CAM",
        notes=notes,
        **facts,
    )


def write_mistakes(folder: str | Path, classes: Sequence[str], result: Evaluation, pictures: pipeline.Pictures) -> Path:
    """Writes ``mistakes.csv``, every wrong answer, the most confident first; returns its path."""
    path = Path(folder) / "mistakes.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", "true", "predicted", "confidence"])
        for row in result.mistakes(result.count):
            where = pictures.source.where(int(result.index[row]))
            names = classes[result.label[row]], classes[result.prediction[row]]
            rows.writerow([where, *names, f"{result.confidence[row]:.4f}"])
    return path


def headline(result: Evaluation) -> dict[str, float]:
    left_out = {"count", "top5"} if result.classes <= 5 else {"count"}  # of five classes, five are always right
    return {key: value for key, value in result.scalars().items() if key not in left_out}


def notes_on(data: Mapping[str, pipeline.Pictures]) -> list[str]:
    return [
        f"{len(part.corrupt)} damaged pictures of the {name} data were skipped: "
        + ", ".join(where for where, _ in list(part.corrupt.values())[:5])
        for name, part in data.items()
        if part.corrupt
    ]
