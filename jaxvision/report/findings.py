"""The page of a check of a dataset: what to look at first, with the images and what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from jaxvision.report.document import date_line, document
from jaxvision.report.files import write_atomically
from jaxvision.report.gallery import image_tag
from jaxvision.report.markup import Markup, join, tag

#: Pixels of the longer side of an image.
SIDE = 220


@dataclass(frozen=True)
class Card:
    """One finding.

    Attributes:
      images: the image, and the one that it is compared with; uint8 [h, w, channels].
      title: what was found, in a few words.
      lines: further lines of text.
      files: where the images are.
    """

    images: Sequence[np.ndarray]
    title: str
    lines: Sequence[str]
    files: Sequence[str]


@dataclass(frozen=True)
class Group:
    """The findings of one kind.

    Attributes:
      name: identifier of the section.
      title: heading.
      count: number of findings.
      lead: what they are, how many are real, and what to do.
      cards: the first of them.
    """

    name: str
    title: str
    count: int
    lead: str
    cards: Sequence[Card]


def write_findings(
    path: str | os.PathLike[str], groups: Sequence[Group], *, title: str, subtitle: str, notes: Sequence[str] = ()
) -> Path:
    """Writes the page atomically and returns its path.

    Args:
      path: of the HTML file.
      groups: in the order in which to look at them. Those without findings are only counted.
      title: heading of the page.
      subtitle: a sentence below it.
      notes: remarks for the reader.

    Raises:
      OSError: the folder cannot be created or the disk is full.
    """
    counts = [("to look at", sum(group.count for group in groups)), *((g.title.lower(), g.count) for g in groups)]
    tiles = [tag("div", tag("dt", name), tag("dd", f"{n:,}")) for name, n in counts]
    header = tag(
        "header",
        date_line(datetime.now().astimezone()),
        tag("h1", title),
        tag("p", subtitle, class_="subtitle"),
        tag("dl", tiles, class_="numbers"),
        [tag("p", note, class_="note") for note in notes],
    )
    sections = [(group.name, f"{group.title}: {group.count:,}", _section(group)) for group in groups if group.count]
    return write_atomically(Path(path), document(title, header, sections))


def _section(group: Group) -> Markup:
    rest = group.count - len(group.cards)
    more = tag("p", f"{rest:,} more are in the table.", class_="hint") if rest else None
    is_pair = any(len(card.images) > 1 for card in group.cards)
    gallery = tag("div", [_figure(card) for card in group.cards], class_="gallery wide" if is_pair else "gallery")
    return join([tag("p", group.lead, class_="lead"), gallery, more])


def _figure(card: Card) -> Markup:
    images = [image_tag(image, side=SIDE, alt=file) for image, file in zip(card.images, card.files, strict=True)]
    caption = tag(
        "figcaption",
        tag("b", card.title, title=card.title),
        [tag("span", line, title=line) for line in card.lines],
        [tag("span", file, class_="where", title=file) for file in card.files],
    )
    return tag("figure", tag("div", images, class_="pair") if len(images) > 1 else images, caption)
