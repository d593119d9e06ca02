"""The frame of a page: one HTML file that contains its style and script, and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib import resources

from jaxvision.errors import printable
from jaxvision.report.markup import Markup, tag


def document(
    title: str, header: Markup, sections: Sequence[tuple[str, str, Markup]], data: Markup | None = None
) -> str:
    """Returns a page as HTML.

    Args:
      title: of the window.
      header: what comes before the sections.
      sections: id, title and content of each, for the page and its navigation.
      data: an element for programs that read the file.
    """
    body = tag(
        "body",
        _navigation([(name, title) for name, title, _ in sections]),
        tag(
            "main",
            header,
            [tag("section", tag("h2", title), content, id=name) for name, title, content in sections],
            id="top",
        ),
        tag("div", id="tip", role="tooltip", hidden=True),
        data,
        tag("script", Markup(_resource("page.js"))),
    )
    return printable("<!doctype html>\n" + tag("html", _head(title), body, lang="en"))


def date_line(created: datetime) -> Markup:
    """Returns the line with the date of a page, for the top of its header."""
    date = f"{created:%d %B %Y, %H:%M}".lstrip("0")
    return tag("p", tag("time", date, datetime=created.isoformat(timespec="seconds")), class_="made")


def _head(title: str) -> Markup:
    # The policy forbids every request, so that markup injected by a class name or a path cannot load anything either.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · jaxvision"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(_resource("page.css"))),
    )


def _resource(name: str) -> str:
    return resources.files("jaxvision.report").joinpath(name).read_text(encoding="utf-8")


def _navigation(sections: Sequence[tuple[str, str]]) -> Markup:
    label = "switch between light and dark"
    return tag(
        "nav",
        tag("a", "jaxvision", href="#top", class_="mark"),
        tag("div", [tag("a", title, href=f"#{name}") for name, title in sections], class_="links"),
        tag("button", "◐", type="button", id="theme", title=label, aria_label=label),
    )
