"""What a classifier is worth on data."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from jaxvision import report
from jaxvision.augment import on_device
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.data import pipeline, source
from jaxvision.data.folder import open_test_folder
from jaxvision.errors import Preempted, UserError, disk_errors_as_user_errors
from jaxvision.eval.metrics import Evaluation
from jaxvision.eval.page import describe, headline, notes_on, write_mistakes
from jaxvision.eval.step import evaluate_batches, make_eval_step
from jaxvision.parallel.mesh import check_batch_size, make_mesh, shard_batch
from jaxvision.train.loss import make_loss
from jaxvision.train.partial import parameter_counts
from jaxvision.weights import imagenet


def evaluate(
    classifier: Classifier,
    data: str,
    *,
    split: str = "test",
    batch_size: int = 32,
    workers: int | None = None,
    report_dir: str | Path | None = None,
    max_corrupt: int = 10,
    quiet: bool = False,
    **options: Any,
) -> dict[str, float]:
    """Returns what a classifier is worth on a data set.

    Args:
      classifier: from `jaxvision.classifier.load_classifier`.
      data: a folder with one folder for each class, or the name of a source.
      split: ``"train"``, ``"validation"`` or ``"test"``, of a source or of a folder that has such parts.
      batch_size: images at once.
      workers: as in training.
      report_dir: folder for ``report.html``; None writes none.
      max_corrupt: damaged pictures that are named and skipped.
      quiet: print nothing.
      **options: of the source.

    Raises:
      UserError: data that are not there, or of other classes than the model's.
    """
    clock = report.Clock()
    with report.Console(io.StringIO() if quiet else None) as console:
        if not Path(data).is_dir() and data not in source.SOURCES:
            raise UserError(f"no such folder: {data}; nor is it a source ({', '.join(source.SOURCES)})")
        if Path(data).is_dir():
            if options:
                raise UserError(f"a folder takes no option {min(options)!r}; a source does")
            folders = {path.name for depth in ("*", "*/*") for path in Path(data).glob(depth) if path.is_dir()}
            names = _spelled(classifier.classes, folders)
            chosen: Any = open_test_folder(data, names, split)
        else:
            chosen = source.open_source(data, **options).part(split)
            names = _spelled(classifier.classes, chosen.classes)
        if len(chosen.classes) != len(classifier.classes):
            raise UserError(f"{chosen.name} has {len(chosen.classes)} classes, the model {len(classifier.classes)}")
        pairs = zip(chosen.classes, names, strict=True)
        if differing := [f"{i} is {a!r} in the data, {b!r} in the model" for i, (a, b) in enumerate(pairs) if a != b]:
            # Names alone may differ ("3" and "class 3"); the same names in another order cannot be meant.
            if set(chosen.classes) == set(names):
                raise UserError(f"{chosen.name} numbers the model's classes in another order: {differing[0]}")
            console.warn(f"classes are compared by number, but their names differ: {differing[0]}")
        check_batch_size(batch_size, make_mesh(devices=jax.devices()[:1]))
        if report_dir is not None and (Path(report_dir) / "metrics.jsonl").exists():
            raise UserError(f"{report_dir} has the report of a training run, which would be lost; take another folder")
        try:
            if report_dir is not None:
                Path(report_dir).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make the folder {report_dir}: {e.strerror or e}") from e
        pictures = pipeline.prepare(chosen, max_corrupt=max_corrupt, log=console.warn)
        mesh = make_mesh(devices=jax.devices()[:1])
        graph, state = nnx.split(classifier.model)
        console.start(
            model=classifier.model.architecture,
            parameters=parameter_counts(state)[0],
            dataset=chosen.name,
            classes=len(chosen.classes),
            data={split: len(chosen)},
        )
        with clock.part("evaluation"):
            result = evaluate_part(
                pictures,
                state=state,
                name=split,
                step_of=functools.partial(
                    eval_step, graph, mesh, make_loss(), "softmax", classifier.preprocess, lambda merged: merged
                ),
                mesh=mesh,
                preprocess=classifier.preprocess,
                batch_size=batch_size,
                workers=workers,
                process=(0, 1),
                classes=len(classifier.classes),
                console=console,
            )
        files = {}
        if report_dir is not None:
            page = describe(
                classifier,
                result,
                pictures,
                title=classifier.model.architecture,
                subtitle=f"evaluated on {chosen.name}",
                notes=notes_on({split: pictures}),
                command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            )
            with disk_errors_as_user_errors(Path(report_dir)):
                files["report"] = report.write_report(report_dir, replace(page, timing=clock.timing()))
                files["mistakes"] = write_mistakes(report_dir, classifier.classes, result, pictures)
        console.finish(final=headline(result) | {"count": result.count}, timing=clock.timing(), files=files)
        return result.scalars()


def _spelled(classes: Sequence[str], found: Collection[str]) -> Sequence[str]:
    """Returns `classes` as the data call them: ImageNet's come by their names, or as WordNet's identifiers."""
    by_wordnet = tuple(classes) == imagenet.class_names() and not set(found).isdisjoint(imagenet.synsets())
    return imagenet.synsets() if by_wordnet else classes


def evaluate_part(
    pictures: pipeline.Pictures,
    *,
    state: nnx.State,
    name: str,
    step_of: Callable[[bool], Any],
    mesh: jax.sharding.Mesh,
    preprocess: Preprocess,
    batch_size: int,
    workers: int | None,
    process: tuple[int, int],
    classes: int,
    console: report.Console,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Returns what the model in `state` is worth on one part of the data.

    Raises:
      Preempted: told to stop on the way.
    """

    def unless_stopped(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if told_to_stop():
                raise Preempted(f"told to stop while the {name} data were evaluated; the same command goes on")
            yield batch

    batches = pipeline.eval_batches(
        pictures, batch_size=batch_size, preprocess=preprocess, workers=workers, process=process
    )
    placed = pipeline.prefetch(batches, functools.partial(shard_batch, mesh=mesh))
    total = pipeline.eval_steps(len(pictures), batch_size)
    shown = console.evaluation(unless_stopped(placed), total=total, name=name)
    result = evaluate_batches(step_of(pictures.stored is not None), state, shown, classes=classes)
    tell_damaged(pictures)
    return result


def tell_damaged(pictures: pipeline.Pictures) -> None:
    """Has all processes know of the damaged pictures that any of them has met, so that process 0 can say them.

    Raises:
      UserError: there are more than are allowed; on all of them.
    """
    if jax.process_count() == 1 or pictures.stored is not None:
        return
    mine = np.array(sorted(pictures.corrupt), np.int32)
    most = int(np.max(multihost_utils.process_allgather(np.int32(len(mine)))))
    if most:
        met = np.asarray(multihost_utils.process_allgather(np.pad(mine, (0, most - len(mine)), constant_values=-1)))
        pictures.found_corrupt(np.unique(met[met >= 0]).tolist())


@functools.lru_cache(maxsize=8)
def eval_step(graph, mesh, loss, probabilities, preprocess, model_of, stored):
    # Cached: each evaluation of a run is the same program, and must not be compiled anew.
    return make_eval_step(
        graph,
        mesh=mesh,
        loss=loss,
        probabilities=probabilities,
        prepare=lambda batch: on_device.prepare_eval(batch, preprocess=preprocess, resize=stored),
        model_of=model_of,
    )
