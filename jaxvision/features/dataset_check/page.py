"""The page and the table of a check."""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvision.augment.decoding import to_three_channels
from jaxvision.data.dataset import Dataset
from jaxvision.data.reading import to_pixels
from jaxvision.disk import replaced
from jaxvision.errors import UserError, count, printable
from jaxvision.features.dataset_check.findings import KINDS, Finding, Findings, raw_image
from jaxvision.report.findings import SIDE, Card, Group, write_findings

PAGE, TABLE = "check.html", "findings.csv"

_COLUMNS = (
    *("kind", "path", "split", "label", "suggested_label", "partner", "partner_split", "partner_label"),
    *("score", "note", "action"),
)
_MOST_CARDS = 48  # of each kind on the page, which keeps it below 5 MB

TITLES = {
    "leak": "Leaks",
    "conflict": "Conflicting labels",
    "label": "Likely wrong labels",
    "duplicate": "Duplicates",
    "outlier": "Outliers",
}

_BRIEF = {
    "leak": "copies in another split: delete them first, because they raise the accuracy of the test",
    "conflict": "copies with another label",
    "label": "according to a classifier of the other images",
    "duplicate": "copies in the same split",
    "outlier": "unlike all other images",
}

_LEADS = {
    "leak": "Copies of an image in another split. A model that is trained on one of them is tested on an image that it "
    "has seen, so its accuracy is too high. Delete the first image of each pair. Keep the second one, which is in the "
    "test data if either is.",
    "conflict": "Copies of one image with different labels. One of them is wrong: correct it, and delete the copy.",
    "label": "A classifier that was fitted to the other images is confident in another class. Start at the top, where "
    "most are real, and stop where you disagree with most. Move the image to the right class, or delete it if it shows "
    "both classes or neither.",
    "duplicate": "Copies in the same split with the same label count twice. Delete the first image of each pair, or "
    "leave them: they do little harm.",
    "outlier": "Images unlike all others: broken files, screenshots, other subjects, or rare but valid examples. "
    "Delete what does not belong. Some may only be the most unusual of valid images.",
}


def write_check(folder: str | Path, findings: Findings, images: Mapping[str, Dataset], *, name: str) -> list[Path]:
    """Writes ``check.html`` and ``findings.csv`` atomically, and returns their paths.

    Args:
      folder: created if necessary.
      findings: from `jaxvision.features.check`.
      images: the datasets that were checked.
      name: of the data, for the title.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        _write_table(folder / TABLE, findings)
        kinds = [kind for kind in KINDS if _was_checked(kind, findings)]
        page = write_findings(
            folder / PAGE,
            [_group(kind, findings, images) for kind in kinds],
            title=f"Check of {name}",
            subtitle=_subtitle(findings),
            notes=findings.notes,
        )
    except OSError as e:
        raise UserError(f"{folder}: cannot be written: {e.strerror or e}. Choose another folder.") from e
    return [page, folder / TABLE]


def summary(findings: Findings) -> list[str]:
    """Returns a line for each kind of finding, in the order in which to look at them."""
    lines = []
    for kind in KINDS:
        if _was_checked(kind, findings):
            n = len(findings.of(kind))
            lines.append(f"{TITLES[kind].lower()}: {n:,}{f', {_BRIEF[kind]}' if n else ''}")
    return lines


def _was_checked(kind: str, findings: Findings) -> bool:
    splits = len(set(findings.features.split))
    return {
        "leak": splits > 1,
        "conflict": len(findings.features.classes) > 1,
        "label": findings.estimated_label_errors is not None,
    }.get(kind, True)


def _subtitle(findings: Findings) -> str:
    features = findings.features
    split, n = np.unique(features.split, return_counts=True)
    parts = ", ".join(f"{each:,} {name}" for name, each in zip(split, n, strict=True)) if len(n) > 1 else ""
    classes = f" of {count(len(features.classes), 'class', 'classes')}" if features.classes else ""
    return f"{count(len(features), 'image')}{classes}{f' ({parts})' if parts else ''}. All findings are in {TABLE}."


def _group(kind: str, findings: Findings, images: Mapping[str, Dataset]) -> Group:
    found = findings.of(kind)
    lead = _LEADS[kind]
    if kind == "label" and findings.estimated_label_errors is not None:
        lead += f" Confident learning estimates {count(findings.estimated_label_errors, 'wrong label')} in all."
    cards = [_card(finding, findings, images) for finding in found[:_MOST_CARDS]]
    return Group(kind, TITLES[kind], len(found), lead, cards)


def _card(finding: Finding, findings: Findings, images: Mapping[str, Dataset]) -> Card:
    features = findings.features
    rows = [finding.row] if finding.partner is None else [finding.row, finding.partner]
    thumbnails = [_thumbnail(raw_image(features, images, row)) for row in rows]
    own = _class(findings, features.label[finding.row])
    score = f"{finding.score:.2f}"
    if finding.kind == "label":
        title, lines = f"{_class(findings, finding.suggested)}?", [f"label: {own}", f"margin {score}"]
    elif finding.kind == "outlier":
        title, lines = own or "outlier", [f"distance {score}"]
    else:
        splits = " and ".join(dict.fromkeys(features.split[row] for row in rows))
        labels = " and ".join(dict.fromkeys(_class(findings, features.label[row]) for row in rows))
        title, lines = f"{finding.note}, correlation {score}", [": ".join(filter(None, (splits, labels)))]
    files = [features.path[row].removeprefix(f"{_common_folder(features.path)}/") for row in rows]
    return Card(thumbnails, title, lines, files)


@functools.cache
def _common_folder(paths: tuple[str, ...]) -> str:
    return os.path.commonpath(paths)


def _thumbnail(image: bytes | np.ndarray) -> np.ndarray:
    small = Image.fromarray(to_three_channels(to_pixels(image)))
    small.thumbnail((SIDE, SIDE))
    return np.asarray(small)


def _facts(findings: Findings, row: int) -> list[str]:
    features = findings.features
    return [features.path[row], features.split[row], _class(findings, features.label[row])]


def _class(findings: Findings, number: int | None) -> str:
    return findings.features.classes[number] if number is not None and number >= 0 else ""


def _action(finding: Finding, findings: Findings) -> str:
    split = findings.features.split[finding.row]
    suggested = _class(findings, finding.suggested)
    return {
        "leak": f"delete from {split}",
        "conflict": f"keep one of the two, as {suggested}" if suggested else "keep one of the two",
        "label": f"move to {suggested}, or delete",
        "duplicate": "delete",
        "outlier": "delete if it does not belong",
    }[finding.kind]


def _write_table(path: Path, findings: Findings) -> None:
    with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        for finding in findings.findings:
            row, partner = finding.row, finding.partner
            cells = [
                *(finding.kind, *_facts(findings, row), _class(findings, finding.suggested)),
                *(["", "", ""] if partner is None else _facts(findings, partner)),
                *(f"{finding.score:.4f}", finding.note, _action(finding, findings)),
            ]
            table.writerow([printable(cell) for cell in cells])
