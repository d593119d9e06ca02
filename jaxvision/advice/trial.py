"""Probes of the best models on a sample of the user's own images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxvision import report
from jaxvision.advice.choices import Choice, Trial
from jaxvision.classifier import load_classifier
from jaxvision.data.dataset import Dataset, open_dataset
from jaxvision.data.folder import FolderSource, open_folder
from jaxvision.data.source import Subset, stratified_split
from jaxvision.disk import cache_folder
from jaxvision.errors import UserError
from jaxvision.features.probe import fit_probe
from jaxvision.features.store import cached_extract

#: The most images of a trial, unless there are many classes. With 1,000 images the standard error of an accuracy of
#: 90 % is one point.
SAMPLE = 1000
LEAST_PER_CLASS = 5  # mean number of images per class if there are many; one for each fold of the cross-validation


def rank_by_trial(
    rows: Sequence[Choice], tries: int, folder: str | Path, *, log: Callable[[str], None]
) -> list[Choice]:
    """Returns the rows with the result of a probe of each of the first `tries`, the most accurate first.

    A probe is a linear classifier of the features of a model, evaluated by cross-validation. The sample is from the
    training images, so that the others remain unseen. The features stay in the cache, where `jaxvision probe` finds
    them. A model whose weights cannot be loaded follows those that were tried.

    Args:
      rows: the short list, best first.
      tries: number of rows to try.
      folder: a folder as `jaxvision.data.folder.open_folder` takes it.
      log: called with a line before each probe, and about weights that cannot be loaded.

    Raises:
      UserError: the weights of none of the rows can be loaded, no class has two training images, or too many images
        are damaged.
    """
    images = _sample(folder, log)
    tried, failures = [], []
    for i, row in enumerate(rows[:tries]):
        log(f"probing {row.name} on {len(images.source):,} images ({i + 1} of {len(rows[:tries])}) ...")
        try:
            classifier = load_classifier(row.name, in_channels=images.channels)
        except UserError as e:
            failures.append(str(e).partition(". ")[0])  # what to do about one model is not what to do here
            log(f"{row.name} is not tried: {failures[-1]}")
            continue
        with report.Console(sys.stderr) as console:
            features = cached_extract(classifier, images, cache=cache_folder("features"), console=console)
        probe = fit_probe(features.values, features.label, len(images.source.classes))
        trial = Trial(100 * probe.accuracy, 100 * probe.standard_error, len(probe.held_out))
        tried.append(replace(row, trial=trial, is_offline=True))
    if not tried:
        raise UserError(
            f"tries (--try): none of the models can be loaded. {failures[0]}. Omit it, or connect to a network."
        )
    names = {row.name for row in tried}
    tried.sort(key=lambda row: -row.trial.accuracy if row.trial else 0.0)
    return tried + [row for row in rows if row.name not in names]


def _sample(folder: str | Path, log: Callable[[str], None]) -> Dataset:
    train = open_folder(data_dir=str(folder)).train
    assert isinstance(train, FolderSource)
    if np.bincount(train.labels).max() < 2:
        raise UserError(
            "tries (--try): got no class with two training images, expected one, for the cross-validation. Add images, "
            "or omit tries."
        )
    most = max(SAMPLE, LEAST_PER_CLASS * len(train.classes))
    if len(train) <= most:
        return open_dataset(train, log=log)
    _, rows = stratified_split(train.labels, most / len(train), seed=0, where="tries (--try)")
    return open_dataset(Subset(train, rows, name=train.name), log=log)
