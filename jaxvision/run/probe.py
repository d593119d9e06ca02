"""A linear probe as a run: features, cross-validation, and the same result as of training."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxvision import report
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.data.dataset import Dataset, open_dataset
from jaxvision.data.folder import find_folder
from jaxvision.data.layout import check_outputs_outside
from jaxvision.data.source import Source, empty_classes_text
from jaxvision.errors import UserError, count, disk_errors_as_user_errors, memory_errors_as_user_errors
from jaxvision.eval.metrics import Evaluation, headline, summarize_probabilities
from jaxvision.eval.page import describe, notes_on, write_mistakes
from jaxvision.features.extraction import Features, transform_of
from jaxvision.features.images import open_images
from jaxvision.features.neighbors import knn_accuracy
from jaxvision.features.probe import Probe, check_size, fit_probe, with_head
from jaxvision.features.store import cached_extract, weights_digest
from jaxvision.parallel.mesh import check_batch_size, make_mesh
from jaxvision.run.config import complete
from jaxvision.run.start import fingerprint_checksum
from jaxvision.run.workdir import (
    check_config,
    config_record,
    lock,
    read_result,
    result_files,
    write_config,
    write_result,
)
from jaxvision.train.partial import parameter_counts

_LESS_MEMORY = "Set a smaller batch size (--batch-size)."
_FEWER = (
    "Take fewer images, or train the head with jaxvision train, --config.model.freeze_backbone=True and "
    "--config.train.head_init=None."
)
_CROSS_VALIDATION = "cross-validation"


def probe(
    model: str | Path,
    data: str | Path,
    workdir: str | Path,
    *,
    checkpoint_path: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    folds: int = 5,
    batch_size: int | None = None,
    max_corrupt: int = 10,
    memory_limit: float = 2.0,
    cache: str | Path | None = None,
    **options: Any,
) -> dict[str, float]:
    """Fits a linear classifier to the features of a model and returns its metrics.

    The workdir then has what that of a training run has, except checkpoints: ``export/`` with the model and the new
    head, ``report.html``, ``mistakes.csv``, ``metrics.jsonl`` with the curve over the regularization, ``config.json``
    and ``result.json``. If the probe is finished, checks that its data and weights are unchanged and returns its
    result.

    Args:
      model: as for `jaxvision.load_classifier`. Its head is not used.
      data: a folder with one folder for each class or with splits, or the name of a source.
      workdir: folder of the result.
      checkpoint_path, num_classes, image_size: as for `jaxvision.load_classifier`.
      folds: as for `jaxvision.features.fit_probe`.
      batch_size: images per step, over all devices. None: 32 for each device.
      max_corrupt: number of damaged images that are skipped. One more is an error.
      memory_limit: as for `jaxvision.data.open_dataset`.
      cache: folder of the cache of features. None: no cache.
      **options: of the source.

    Returns:
      ``top1``, ``top5``, ``loss``, ``calibration_error`` and ``count``: on the test data, else on the validation data,
      else of the predictions of the cross-validation. Beside them ``cross_validated_accuracy``, ``standard_error``,
      ``regularization``, ``knn_accuracy`` (of each training image among the others) and that of the test data.

    Raises:
      UserError: the data or the model do not exist or do not fit, or the workdir has the result of another run.
    """
    workdir, clock = Path(workdir).expanduser(), report.Clock()
    if batch_size is not None:
        check_batch_size(batch_size, make_mesh(), what="--batch-size")
    if max_corrupt < 0:
        raise UserError(f"max_corrupt (--max-corrupt): got {max_corrupt}, expected 0 or more.")
    if folds < 2:
        raise UserError(f"folds (--folds): got {folds}, expected 2 or more.")
    given: dict[str, Any] = {"num_classes": num_classes, "image_size": image_size}
    with ExitStack() as stack:
        stack.enter_context(memory_errors_as_user_errors(_LESS_MEMORY))
        console = stack.enter_context(report.Console())
        stack.enter_context(disk_errors_as_user_errors(workdir))
        check_outputs_outside([workdir / "export" / "config.json"], data, options.get("layout"))
        with clock.phase("data preparation"):
            sources = _open(str(data), options)
            images = {
                split: open_dataset(source, memory_limit=memory_limit, max_corrupt=max_corrupt, log=console.warn)
                for split, source in sources.items()
            }
            channels = images["train"].channels
            classifier = load_classifier(
                model,
                checkpoint_path=checkpoint_path,
                in_channels=channels,
                **{key: value for key, value in given.items() if value is not None},
            )
        facts = {"model": str(model), "checkpoint_path": checkpoint_path, **given, "folds": folds}
        facts["weights"] = {
            "checksum": weights_digest(classifier.model)
        }  # the weights in a folder may have changed since
        # What changes when images are added, removed, renamed or put into another class.
        facts["images"] = {
            split: {"number": len(part), "checksum": fingerprint_checksum(part)} for split, part in images.items()
        }
        record = _record(classifier, data, options, facts, max_corrupt=max_corrupt, memory_limit=memory_limit)
        if finished := read_result(workdir, record, log=console.warn):
            console.note(
                f"this probe is finished, and {workdir} has its result. Choose another --workdir to fit again."
            )
            metrics, split = finished["metrics"], finished["split"]
            shown = headline(metrics, classes=len(images["train"].source.classes)) | {"count": metrics["count"]}
            shown = {key: x for key, x in shown.items() if key not in ("standard_error", "regularization")}
            console.finish(final=shown, name=split, files=result_files(workdir))
            return metrics
        check_config(workdir, record)
        check_size(len(images["train"]), len(images["train"].source.classes), where=str(data), fix=_FEWER)
        stack.enter_context(lock(workdir))
        _announce(console, classifier, images, workdir)
        # One transform for all splits, even if some are kept in memory and others are streamed.
        classifier = replace(classifier, preprocess=transform_of(classifier, images["train"].pipeline))
        how: dict[str, Any] = {"preprocess": classifier.preprocess, "batch_size": batch_size, "console": console}
        with clock.phase("features"):
            features = {
                split: cached_extract(classifier, part, cache=cache, name=split, **how)
                for split, part in images.items()
            }
        fitted = _fit(features, folds=folds, console=console, clock=clock)
        write_config(workdir, record)
        _export(workdir, classifier, fitted, images, record, console=console, clock=clock)
        metrics = fitted.result.scalars() | fitted.beside
        write_result(workdir, step=0, split=fitted.split, metrics=metrics)
        return metrics


@dataclass(frozen=True)
class _Fitted:
    """A probe and its evaluation.

    Attributes:
      probe: from `fit_probe`.
      result: its evaluation on held-out images.
      split: what it was evaluated on: a split, or ``"cross-validation"``.
      rows: the split whose images `result` numbers.
      beside: further metrics.
    """

    probe: Probe
    result: Evaluation
    split: str
    rows: str
    beside: dict[str, float]


def _open(data: str, options: Mapping[str, Any]) -> dict[str, Source]:
    """Returns the images to fit to as ``train``, and those to test on."""
    sources = open_images(data, **options)
    if "all" in sources:
        sources = {"train": sources["all"]}
    if "train" not in sources:
        raise UserError(f"{data}: got the splits {', '.join(sources)}, expected also train. Add training images.")
    if len(sources["train"].classes) < 2:
        raise UserError(
            f"{data}: got {count(len(sources['train'].classes), 'class', 'classes')}, expected two or more. Put the "
            "images of each class into a folder of its own."
        )
    return sources


def _record(
    classifier: Classifier,
    data: str | Path,
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    **of_data: Any,
) -> dict[str, Any]:
    """Returns the config of the probe in the form of a training run's, for the commands that read a workdir.

    Args:
      classifier: the model that the features come from.
      data, options: as for `probe`.
      facts: what else the result depends on.
      **of_data: keys of the section ``data``.
    """
    own: dict[str, Any] = {"name": str(data)}
    if find_folder(data) is not None:
        own = {"name": "folder", "data_dir": str(data), "test_fraction": 0.0}
    config = complete(
        ConfigDict(
            {
                "source": {**own, **options},
                "model": {**_weights(classifier, facts), "freeze_backbone": True},
                "data": of_data,
            }
        ),
        check=False,
    )
    return config_record(config) | {"probe": config_record(facts)}


def _weights(classifier: Classifier, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of the section ``model`` that name the weights which the features come from."""
    name, path = facts["model"], facts["checkpoint_path"]
    if Path(name.removeprefix("local-dir:")).expanduser().is_dir():
        return {"name": classifier.model.architecture, "checkpoint_path": str(path or name.removeprefix("local-dir:"))}
    return {"name": name, "pretrained": True} if path is None else {"name": name, "checkpoint_path": str(path)}


def _announce(console: report.Console, classifier: Classifier, images: Mapping[str, Dataset], workdir: Path) -> None:
    for split, part in images.items():
        for note in getattr(part.source, "notes", ()):
            console.note(note)
        if text := empty_classes_text(part.source):
            console.warn(f"{split} data: {text}")
    console.start(
        model=classifier.model.architecture,
        parameters=parameter_counts(nnx.state(classifier.model))[0],
        dataset=images["train"].source.name,
        classes=len(images["train"].source.classes),
        data={split: len(part) for split, part in images.items()},
        workdir=workdir,
    )


def _fit(features: Mapping[str, Features], *, folds: int, console: report.Console, clock: report.Clock) -> _Fitted:
    """Returns the probe and its evaluation, and prints both."""
    train, classes = features["train"], len(features["train"].classes)
    split = next((name for name in ("test", "validation") if name in features), _CROSS_VALIDATION)
    with clock.phase("regression"):
        fitted = fit_probe(train.values, train.label, classes, folds=folds, log=console.note)
    if not fitted.folds and split == _CROSS_VALIDATION:
        raise UserError(
            "probe: got one image for each class and no test images, expected two or more of a class. Add images."
        )
    if fitted.folds:
        console.note(
            f"{_CROSS_VALIDATION}: {fitted.accuracy:.2%} ± {fitted.standard_error:.2%} (standard error), "
            f"regularization {fitted.regularization:.2g}"
        )
    else:
        console.warn(f"no class has two images, so the regularization is {fitted.regularization:.2g}, not chosen")
    with clock.phase("nearest neighbors"):
        beside = {
            "cross_validated_accuracy": fitted.accuracy,
            "standard_error": fitted.standard_error,
            "regularization": fitted.regularization,
            "knn_accuracy": knn_accuracy(train.values, train.label),
        }
        if split != _CROSS_VALIDATION:
            tested = features[split]
            beside[f"{split}_knn_accuracy"] = knn_accuracy(train.values, train.label, tested.values, tested.label)
    if split == _CROSS_VALIDATION:
        probabilities, rows = fitted.cross_validated_probabilities, "train"
        label, index = train.label[fitted.held_out], train.index[fitted.held_out]
    else:
        probabilities, rows = fitted.probabilities(features[split].values), split
        label, index = features[split].label, features[split].index
    of_label = probabilities[np.arange(len(label)), label]
    loss = -np.log(np.maximum(of_label, np.finfo(np.float32).tiny))
    return _Fitted(fitted, summarize_probabilities(probabilities, label, index, loss), split, rows, beside)


def _export(
    workdir: Path,
    classifier: Classifier,
    fitted: _Fitted,
    images: Mapping[str, Dataset],
    record: Mapping[str, Any],
    *,
    console: report.Console,
    clock: report.Clock,
) -> None:
    """Writes the model, the curve, the mistakes and the report."""
    shown = images[fitted.rows]
    classes = images["train"].source.classes
    result = with_head(classifier, fitted.probe, classes, classifier.preprocess)
    curve = [{"regularization": p.regularization, "loss": p.loss, "top1": p.accuracy} for p in fitted.probe.curve]
    with clock.phase("report"):
        save_classifier(workdir / "export", result)
        with report.MetricsWriter(workdir, tensorboard=False) as metrics:
            for i, point in enumerate(curve):
                metrics.write(i, _CROSS_VALIDATION, point)
            metrics.write(len(curve), fitted.split, fitted.result.scalars())
        page = describe(
            result,
            fitted.result,
            shown,
            title=f"{classifier.model.architecture}, linear probe",
            subtitle=_subtitle(fitted, shown),
            notes=[*_notes(fitted), *notes_on(images)],
            facts=_facts(fitted),
            history=[
                {
                    "step": math.log10(p["regularization"]),
                    "split": _CROSS_VALIDATION,
                    "loss": p["loss"],
                    "top1": p["top1"],
                }
                for p in curve
            ],
            history_axis="log10 of the regularization",
            config=record,
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        )
    report.write_report(workdir, replace(page, timing=clock.timing()))
    write_mistakes(workdir, classes, fitted.result, shown)
    console.finish(
        final=fitted.result.headline() | _accuracies(fitted),
        name=fitted.split,
        timing=clock.timing(),
        files=result_files(workdir),
    )


def _accuracies(fitted: _Fitted) -> dict[str, float]:
    """Returns the accuracies beside the result, without one that the result has already."""
    omitted = {"cross_validated_accuracy"} if fitted.split == _CROSS_VALIDATION or not fitted.probe.folds else set()
    return {name: x for name, x in fitted.beside.items() if name.endswith("accuracy") and name not in omitted}


def _subtitle(fitted: _Fitted, shown: Dataset) -> str:
    where = f"{_CROSS_VALIDATION} on" if fitted.split == _CROSS_VALIDATION else f"{fitted.split} data of"
    return f"{where} {shown.source.name}"


def _notes(fitted: _Fitted) -> list[str]:
    if fitted.split != _CROSS_VALIDATION:
        return []
    how = f"{fitted.probe.folds} folds" if fitted.probe.folds > 1 else "a fifth of the images was held out"
    return [
        f"Each image was predicted by a classifier that was not fitted to it ({how}). The exported model was fitted to "
        "all images, and explains the images below."
    ]


def _facts(fitted: _Fitted) -> dict[str, str]:
    probe = fitted.probe
    facts = {
        "regularization": f"{probe.regularization:.2g}",
        "nearest neighbors": f"{fitted.beside.get(f'{fitted.split}_knn_accuracy', fitted.beside['knn_accuracy']):.2%}",
    }
    if probe.folds:
        facts[_CROSS_VALIDATION] = f"{probe.accuracy:.2%} ± {probe.standard_error:.2%}"
    return facts
