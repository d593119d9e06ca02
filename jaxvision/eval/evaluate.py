"""Evaluation of a classifier on a dataset."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxvision import report
from jaxvision.classifier import Classifier
from jaxvision.data import source
from jaxvision.data.dataset import Dataset, open_dataset
from jaxvision.data.folder import find_folder, open_test_folder
from jaxvision.data.layout import subfolders
from jaxvision.ensemble import Ensemble, fit_weights
from jaxvision.errors import UserError, count, disk_errors_as_user_errors, memory_errors_as_user_errors
from jaxvision.eval.members import evaluate_ensemble, observed_probabilities, predict_members
from jaxvision.eval.metrics import Evaluation, with_metric
from jaxvision.eval.page import describe, notes_on, write_mistakes
from jaxvision.eval.split import evaluate_split
from jaxvision.eval.step import cached_eval_step, evaluation_loss, identity
from jaxvision.parallel.mesh import IMAGES_PER_DEVICE, batch_devices, make_mesh, replicated
from jaxvision.train.partial import parameter_counts
from jaxvision.weights import imagenet

# Returns one object for each loss, because `cached_eval_step` compares losses by identity.
_builtin_loss = functools.cache(lambda kind: evaluation_loss(kind=kind))
_LESS_MEMORY = "Set a smaller batch size (--batch-size)."


def evaluate(
    classifier: Classifier | Ensemble,
    data: str | source.Source,
    *,
    split: str = "test",
    loss: Mapping[str, Any] | None = None,
    metric: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    report_dir: str | Path | None = None,
    max_corrupt: int = 10,
    memory_limit: float = 2.0,
    trained_on: Sequence[source.Source] = (),
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Returns the metrics of a classifier or an ensemble on a dataset, and optionally writes a report.

    Runs on all devices, in one process.

    Args:
      classifier: from `jaxvision.load_classifier`, or a `jaxvision.Ensemble`. The report of an ensemble explains images
        with its first member.
      data: a folder with one folder per class, the name of a source such as ``"digits"``, or one split of an open
        source.
      split: ``"train"``, ``"validation"`` or ``"test"``, of a source or of a folder that has such splits. If `data` is
        an open split, this is its name in what is printed.
      loss: the section ``loss`` of the config that the classifier was trained with, such as ``{"kind": "sigmoid"}``;
        see `jaxvision.eval.step.evaluation_loss`. None: cross entropy of the classifier's ``probabilities``.
      metric: the section ``metric`` of a config, for one more metric; see `jaxvision.eval.with_metric`.
      batch_size: images per step, over all devices; it is rounded up to a multiple of their number. None: 32 for each.
      workers: processes that decode images; None: one for each usable core, at most 16, and 0 on one or two.
      report_dir: folder for ``report.html`` and ``mistakes.csv``. None writes nothing.
      max_corrupt: number of damaged images that are reported and skipped. One more is an error.
      memory_limit: size in GiB up to which small images of one shape are kept in memory and resized on the device.
      trained_on: training data of the classifier, or of each member, of image files. A warning says how many of them
        are evaluated on.
      quiet: print nothing.
      **options: of the source. Of a folder: ``layout``, as for `jaxvision.data.folder.open_folder`.

    Returns:
      ``top1``, ``top5``, ``loss``, ``calibration_error`` and ``count``, and the metric of `metric`. For an ensemble
      also ``members``, a list of these metrics of each member.

    Raises:
      UserError: the dataset does not exist, its classes are not the model's, `report_dir` cannot be written, or the
        device is out of memory.

    Example:
      >>> import jaxvision
      >>> from jaxvision.augment.preprocess import Preprocess
      >>> model = jaxvision.create_model("test_resnet", num_classes=10, in_channels=1)
      >>> preprocess = Preprocess(image_size=32, mean=(0.5,), std=(0.25,))
      >>> classifier = jaxvision.Classifier(model, tuple("0123456789"), preprocess)
      >>> metrics = evaluate(classifier, "digits", quiet=True)
      >>> sorted(metrics)
      ['calibration_error', 'count', 'loss', 'top1', 'top5']
    """
    clock = report.Clock()
    mesh = make_mesh()
    members = classifier.members if isinstance(classifier, Ensemble) else [classifier]
    loss_of, probabilities = _builtin_loss(classifier.probabilities) if loss is None else evaluation_loss(**loss)
    with report.Console(io.StringIO() if quiet else None) as console, memory_errors_as_user_errors(_LESS_MEMORY):
        chosen, names, name = _open_data(data, split, classifier.classes, options)
        for note in getattr(chosen, "notes", ()):
            console.note(note)
        _check_classes(chosen, names, log=console.warn)
        batch_size = _batch_size(batch_size, len(chosen), mesh)
        if report_dir is not None:
            _make_report_dir(Path(report_dir))
        if text := source.empty_classes_text(chosen):
            console.warn(f"{name} data: {text}")
        notes = trained_on_text(chosen, trained_on)
        for note in notes:
            console.warn(note)
        images = open_dataset(chosen, max_corrupt=max_corrupt, memory_limit=memory_limit, log=console.warn)
        dataset = chosen.name.removesuffix(f" ({name})")  # the name of the split is printed beside the number of images
        console.start(
            model=" + ".join(member.model.architecture for member in members),
            parameters=sum(parameter_counts(nnx.state(member.model))[0] for member in members),
            dataset=dataset,
            classes=len(chosen.classes),
            data={"images" if name == Path(dataset).name else name: len(chosen)},
        )
        with clock.phase("evaluation"):
            each, result = _evaluate(
                classifier,
                images,
                mesh=mesh,
                loss=loss_of,
                probabilities=probabilities,
                batch_size=batch_size,
                workers=workers,
                name=name,
                console=console,
            )
        result = with_metric(result, **(metric or {}))
        each = [with_metric(evaluation, **(metric or {})) for evaluation in each]
        if isinstance(classifier, Ensemble) and len(each) > 1:
            rows = zip((*classifier.names, classifier.title), (*each, result), strict=True)
            console.table(name, [(model, evaluation.headline()) for model, evaluation in rows])
        files = {}
        if report_dir is not None:
            files = _write_report(Path(report_dir), classifier, result, images, name=name, clock=clock, notes=notes)
        final = result.headline() | {"count": result.count}
        console.finish(final=final, name=name, timing=clock.timing(), files=files)
        of_members = {"members": [evaluation.scalars() for evaluation in each]}
        return result.scalars() | (of_members if isinstance(classifier, Ensemble) else {})


def fit_ensemble(
    ensemble: Ensemble,
    data: str | source.Source,
    *,
    split: str = "validation",
    batch_size: int | None = None,
    workers: int | None = None,
    max_corrupt: int = 10,
    memory_limit: float = 2.0,
    quiet: bool = False,
    **options: Any,
) -> Ensemble:
    """Returns an ensemble with the weights of its members that fit a dataset best, by its log-likelihood.

    Args:
      ensemble: the classifiers.
      data, split: as for `evaluate`. Neither the training data of the members, for which the most overfitted one would
        get the most weight, nor the data on which the result is measured.
      batch_size, workers, max_corrupt, memory_limit, quiet, **options: as for `evaluate`.

    Raises:
      UserError: as for `evaluate`.
    """
    mesh = make_mesh()
    loss, kind = _builtin_loss(ensemble.probabilities)
    with report.Console(io.StringIO() if quiet else None) as console, memory_errors_as_user_errors(_LESS_MEMORY):
        chosen, names, name = _open_data(data, split, ensemble.classes, options)
        _check_classes(chosen, names, log=console.warn)
        batch_size = _batch_size(batch_size, len(chosen), mesh)
        images = open_dataset(chosen, max_corrupt=max_corrupt, memory_limit=memory_limit, log=console.warn)
        predicted = predict_members(
            ensemble,
            images,
            mesh=mesh,
            loss=loss,
            probabilities=kind,
            batch_size=batch_size,
            workers=workers,
            name=name,
            console=console,
        )
        observed = [observed_probabilities(rows["probabilities"], rows["label"], kind) for rows in predicted]
        fitted = replace(ensemble, weights=fit_weights(np.stack(observed)).tolist())
        text = ", ".join(f"{name} {weight:.3f}" for name, weight in zip(fitted.names, fitted.weights))
        console.note(f"weights fitted on {count(len(chosen), 'image')} of the {name} data: {text}")
        return fitted


def _batch_size(batch_size: int | None, images: int, mesh: jax.sharding.Mesh) -> int:
    """Returns the images per step: hardly more than there are, and a multiple of the devices."""
    devices = batch_devices(mesh)
    if batch_size is None:
        batch_size = IMAGES_PER_DEVICE * devices
    if batch_size < 1:
        raise UserError(f"batch_size: got {batch_size}, expected 1 or more.")
    most = max(IMAGES_PER_DEVICE, images)  # more would only be padding
    return -(-min(batch_size, most) // devices) * devices


def _evaluate(
    classifier: Classifier | Ensemble,
    images: Dataset,
    *,
    mesh: jax.sharding.Mesh,
    loss: Any,
    probabilities: str,
    **options: Any,
) -> tuple[list[Evaluation], Evaluation]:
    """Returns the evaluations of the members of an ensemble, and the result."""
    if isinstance(classifier, Ensemble):
        return evaluate_ensemble(classifier, images, mesh=mesh, loss=loss, probabilities=probabilities, **options)
    graph, state = nnx.split(classifier.model)
    state = jax.device_put(state, replicated(mesh))
    preprocess = classifier.preprocess
    step_of = functools.partial(cached_eval_step, graph, mesh, loss, probabilities, preprocess, identity)
    result = evaluate_split(
        images,
        state=state,
        step_of=step_of,
        mesh=mesh,
        preprocess=preprocess,
        process=(0, 1),
        classes=len(classifier.classes),
        **options,
    )
    return [], result


def _open_data(
    data: str | source.Source, split: str, classes: Sequence[str], options: dict[str, Any]
) -> tuple[Any, Sequence[str], str]:
    """Returns one split of a dataset, the model's classes in the spelling of that dataset, and the split's name."""
    if not isinstance(data, str | Path):
        return data, _in_dataset_spelling(classes, data.classes), split
    folder = find_folder(data, options)
    if folder is not None:
        outer = subfolders(folder)
        found = {*outer, *(inner for name in outer for inner in subfolders(folder / name))}
        names = _in_dataset_spelling(classes, found)
        images = open_test_folder(folder, names, split, **options)
        return images, names, _name_in_folder(folder, images, names, split)
    chosen: Any = source.open_source(data, **options).split(split)
    return chosen, _in_dataset_spelling(classes, chosen.classes), split


def _name_in_folder(folder: Path, images: source.Source, classes: Sequence[str], split: str) -> str:
    """Returns the name of what was read: the split if the folder has splits, else the name of the folder itself."""
    below = Path(images.where(0)).relative_to(folder).parts[0]
    return folder.resolve().name if below in classes else split


def trained_on_text(chosen: source.Source, trained_on: Sequence[source.Source]) -> list[str]:
    """Returns a line about the images that are also training data; none if there are no such images.

    Args:
      chosen: images to evaluate on.
      trained_on: as for `evaluate`.
    """
    known = {file for each in trained_on for file in _real_files(each)}
    if not known:
        return []
    n = sum(file in known for file in _real_files(chosen))
    if not n:
        return []
    return [
        f"{n:,} of the {count(len(chosen), 'image')} ({n / len(chosen):.0%}) were trained on, so the result is better "
        "than for new images. Leave out --data to evaluate only on images of the run that were held out."
    ]


def _real_files(images: source.Source) -> Iterator[str]:
    """Yields the paths of image files with the links in their folders resolved."""
    real_folder = functools.cache(os.path.realpath)
    for i in range(len(images)):
        folder, name = os.path.split(images.where(i))
        yield os.path.join(real_folder(folder), name)


def _in_dataset_spelling(classes: Sequence[str], found: Collection[str]) -> Sequence[str]:
    """Returns ImageNet's classes as WordNet identifiers if the dataset uses those, else `classes`."""
    by_wordnet = tuple(classes) == imagenet.class_names() and not set(found).isdisjoint(imagenet.synsets())
    return imagenet.synsets() if by_wordnet else classes


def _check_classes(chosen: Any, names: Sequence[str], log: Callable[[str], None]) -> None:
    """Raises if the classes of a dataset are not those of the model; logs a warning if only their names differ."""
    if len(chosen.classes) != len(names):
        raise UserError(
            f"{chosen.name}: got {len(chosen.classes)} classes, expected {len(names)}, as in the model. Choose a "
            "dataset with the model's classes."
        )
    pairs = zip(chosen.classes, names, strict=True)
    differing = [f"{i} is {a!r} in the data, {b!r} in the model" for i, (a, b) in enumerate(pairs) if a != b]
    if not differing:
        return
    # The spelling may differ ("3" and "class 3"), but the same names in another order are a mistake.
    if set(chosen.classes) == set(names):
        raise UserError(
            f"{chosen.name}: got the model's classes in another order: {differing[0]}. Number them in "
            "the model's order."
        )
    log(f"classes are compared by number, but their names differ: {differing[0]}")


def _make_report_dir(folder: Path) -> None:
    if (folder / "metrics.jsonl").exists():
        raise UserError(
            f"{folder} has the report of a training run, which would be overwritten. Choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{folder}: cannot create the folder: {e.strerror or e}.") from e


def _write_report(
    folder: Path,
    classifier: Classifier | Ensemble,
    result: Evaluation,
    images: Dataset,
    *,
    name: str,
    clock: report.Clock,
    notes: Sequence[str],
) -> dict[str, Path]:
    if isinstance(classifier, Ensemble):
        first, title = classifier.members[0], classifier.title
        notes = [*notes, f"The result is that of {classifier}. The explanations are those of its first model."]
    else:
        first, title = classifier, classifier.model.architecture
    page = describe(
        first,
        result,
        images,
        title=title,
        subtitle=f"evaluated on {images.source.name}",
        notes=[*notes, *notes_on({name: images})],
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
    )
    with disk_errors_as_user_errors(folder):
        return {
            "report": report.write_report(folder, replace(page, timing=clock.timing())),
            "mistakes": write_mistakes(folder, classifier.classes, result, images),
        }
