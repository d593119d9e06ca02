"""What is probably wrong with the images and the labels of a dataset."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxvision.data.dataset import Dataset
from jaxvision.data.reading import machine_errors_as_user_errors
from jaxvision.errors import UserError, count
from jaxvision.features.dataset_check.copies import Copy, View, find_copies, view_of
from jaxvision.features.dataset_check.label_errors import FEWEST, LabelErrors, find_label_errors
from jaxvision.features.dataset_check.outliers import find_outliers
from jaxvision.features.extraction import Features
from jaxvision.features.neighbors import nearest_neighbors
from jaxvision.features.probe import MOST, cross_validated_probabilities

#: The kinds of findings, in the order in which to look at them.
KINDS = ("leak", "conflict", "label", "duplicate", "outlier")

#: Agreement with the labels below which a note warns of them. On CIFAR-10 a classifier that agreed with 74 % listed 930
#: of 10,000 labels, of which people had found 12 to be wrong.
WEAK = 0.9

#: Share of the images above which a note doubts the copies. More than half of the digits of scikit-learn pass as such.
MANY = 0.2

NEIGHBORS = 10  # of each image
_FEWEST_FOR_OUTLIERS = 20  # images; among fewer, the width of the distances is a guess
_KEEP = ("test", "validation")  # of an image in several splits, the copy that stays: a test that shrinks changes


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
      kind: ``"leak"``: a copy of an image in another split. ``"conflict"``: a copy with another label.
        ``"label"``: the label is likely wrong. ``"duplicate"``: a copy in the same split with the same label.
        ``"outlier"``: the image resembles no other one.
      row: the image, by its row in the features.
      partner: the image of which it is a copy, which can stay.
      suggested: class number that is more likely than the label.
      score: of copies the correlation of the pixels, of labels the probability of the suggested class minus that of
        the label, of outliers the mean cosine distance to the nearest images.
      note: details in words.
    """

    kind: str
    row: int
    partner: int | None = None
    suggested: int | None = None
    score: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """What `check` found.

    Attributes:
      features: of the images that were checked; findings name their rows.
      findings: by kind in the order of `KINDS`, within a kind the most certain first.
      estimated_label_errors: number of wrong labels in the dataset, as confident learning estimates it. None: not
        checked.
      notes: what was not checked, and why; and what to doubt.
    """

    features: Features
    findings: tuple[Finding, ...]
    estimated_label_errors: int | None
    notes: tuple[str, ...]

    def of(self, kind: str) -> list[Finding]:
        """Returns the findings of one kind."""
        return [finding for finding in self.findings if finding.kind == kind]


def check(
    features: Features, images: Mapping[str, Dataset], *, log: Callable[[str], None] = lambda _: None
) -> Findings:
    """Returns copies, likely label errors and outliers among the images of a dataset, of all its splits together.

    Args:
      features: of all splits, from `extract` or `cached_extract` and joined by `concatenate`.
      images: the datasets of the splits, which the features come from.
      log: called with a line for each part.

    Raises:
      UserError: fewer than two images, or an image can no longer be read.

    Example:
      >>> from jaxvision.data import open_dataset, open_source
      >>> digits = open_dataset(open_source("digits").test)
      >>> pixels = digits.images.reshape(len(digits), -1)  # any features serve
      >>> n = len(digits)
      >>> part = Features(pixels, digits.labels, np.arange(n), ("",) * n, ("test",) * n, tuple("0123456789"))
      >>> len(check(part, {"test": digits}).of("leak"))
      0
    """
    n = len(features)
    if n < 2:
        raise UserError(f"check: got {count(n, 'image')}, expected two or more. Add images.")
    notes: list[str] = []
    log("searching for similar images")
    similarity, neighbor = nearest_neighbors(features.values - features.values.mean(axis=0), min(NEIGHBORS, n - 1))
    log("comparing the pixels of similar images")
    view = functools.cache(lambda row: view_of(raw_image(features, images, row)))
    copies = find_copies(similarity, neighbor, view)
    errors, probabilities = _label_errors(features, notes, log)
    outliers: list[Finding] = []
    if n < _FEWEST_FOR_OUTLIERS:
        notes.append(f"Outliers were not searched, because {n} images are too few ({_FEWEST_FOR_OUTLIERS} or more).")
    else:
        rows, distance, threshold = find_outliers(similarity)
        outliers = [
            Finding("outlier", int(row), score=float(distance[row]), note=f"threshold {threshold:.3f}") for row in rows
        ]
    found = _copy_findings(copies, features, view, probabilities)
    if (alike := sum(finding.note != "identical files" for finding in found)) > MANY * n:
        notes.append(
            f"{alike:,} of {n:,} images pass as copies of others, more than real copies make up. These images are so "
            "alike, or so small, that different ones look the same: trust only identical files."
        )
    found += [*_label_findings(errors), *outliers]
    found.sort(key=lambda finding: (KINDS.index(finding.kind), -finding.score))
    return Findings(features, tuple(found), None if errors is None else errors.estimated, tuple(notes))


def raw_image(features: Features, images: Mapping[str, Dataset], row: int) -> bytes | np.ndarray:
    """Returns the image of a row: the bytes of its file, or its pixels."""
    source, index = images[features.split[row]].source, int(features.index[row])
    try:
        with machine_errors_as_user_errors(source, index):
            return source[index]["image"]
    except OSError as e:
        raise UserError(
            f"{source.where(index)}: cannot be read any more: {e.strerror or e}. Run the same command again."
        ) from e


def _label_errors(
    features: Features, notes: list[str], log: Callable[[str], None]
) -> tuple[LabelErrors | None, np.ndarray | None]:
    """Returns the likely label errors and the cross-validated probabilities; None if there are no labels to check."""
    if not features.classes:
        notes.append("Labels were not checked, because the images have no classes.")
        return None, None
    counts = np.bincount(features.label, minlength=len(features.classes))
    if (counts >= FEWEST).sum() < 2:
        notes.append(f"Labels were not checked, because this needs two classes with {FEWEST} images or more.")
        return None, None
    if len(features) * len(features.classes) > MOST:
        notes.append(
            "Labels were not checked, because there are too many images and classes for the memory of a laptop."
        )
        return None, None
    if few := [name for name, n in zip(features.classes, counts, strict=True) if 0 < n < FEWEST]:
        notes.append(f"The labels of classes with fewer than {FEWEST} images were not checked: {', '.join(few)}.")
    log("checking labels by cross-validation")
    probabilities = cross_validated_probabilities(features.values, features.label, len(features.classes))
    if (agreement := (probabilities.argmax(axis=1) == features.label).mean()) < WEAK:
        notes.append(
            f"The classifier that checks the labels agrees with only {agreement:.0%} of them, so most of the likely "
            "wrong labels are its own mistakes. Look at the first ones, or choose a model that fits such images better."
        )
    return find_label_errors(probabilities, features.label), probabilities


def _label_findings(errors: LabelErrors | None) -> list[Finding]:
    if errors is None:
        return []
    return [
        Finding("label", int(row), suggested=int(suggested), score=float(margin))
        for row, suggested, margin in zip(errors.row, errors.suggested, errors.margin, strict=True)
    ]


def _copy_findings(
    copies: Sequence[Copy], features: Features, view: Callable[[int], View], probabilities: np.ndarray | None
) -> list[Finding]:
    """Returns a finding for each image that a copy can replace.

    Images are taken in the order in which they should stay: those of the test data, then larger ones. One that is a
    copy of an image that stays is a finding, and the others stay. Every finding is therefore a pair that was compared.
    """
    links: dict[int, dict[int, Copy]] = {}
    for copy in copies:
        links.setdefault(copy.first, {})[copy.second] = copy
        links.setdefault(copy.second, {})[copy.first] = copy
    split, label = features.split, features.label

    def precedence(row: int) -> tuple[int, int, int]:
        return _KEEP.index(split[row]) if split[row] in _KEEP else len(_KEEP), -view(row).pixels, row

    kept: set[int] = set()
    found = []
    for row in sorted(links, key=precedence):
        partners = [other for other in links[row] if other in kept]
        if not partners:
            kept.add(row)
            continue
        # A copy in another split is worse than one with another label, and that worse than a mere duplicate.
        partner = max(
            partners, key=lambda other: (split[other] != split[row], label[other] != label[row], links[row][other])
        )
        copy = links[row][partner]
        if split[partner] != split[row]:
            found.append(Finding("leak", row, partner, score=copy.correlation, note=copy.how))
        elif label[partner] != label[row]:
            found.append(_conflict(row, partner, copy, label, probabilities))
        else:
            found.append(Finding("duplicate", row, partner, score=copy.correlation, note=copy.how))
    return found


def _conflict(row: int, partner: int, copy: Copy, label: np.ndarray, probabilities: np.ndarray | None) -> Finding:
    """Returns the finding for two copies with different labels, and suggests the label that is more probable."""
    suggested = None
    if probabilities is not None:
        ours, theirs = label[row], label[partner]
        both = probabilities[row] + probabilities[partner]
        suggested = int(ours if both[ours] > both[theirs] else theirs)
        if suggested == ours:  # then the other image is the one to remove
            row, partner = partner, row
    return Finding("conflict", row, partner, suggested, copy.correlation, copy.how)
