"""Reports for tests, and a parser that checks the structure of a report's HTML."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from jaxvision.report import LabeledImage, Report, Timing, write_report

VOID = {"meta", "link", "br", "img", "input"}
HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The elements and texts of a page. Raises AssertionError for tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attributes}) == len(attributes), attributes
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> is not HTML")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1][0] if self.open else "", data))

    @property
    def text(self) -> str:
        return "".join(data for tag, data in self.texts if tag not in ("script", "style"))

    def all(self, tag: str, class_: str | None = None) -> list[dict[str, str | None]]:
        wanted = [attributes for name, attributes in self.tags if name == tag]
        return [a for a in wanted if class_ is None or class_ in (a.get("class") or "").split()]

    @property
    def sections(self) -> list[str]:
        return [str(section["id"]) for section in self.all("section")]

    def data(self, **attributes: str) -> dict:
        """Returns the JSON of the script element with these attributes."""
        return json.loads(self.script(**attributes))

    def script(self, **attributes: str) -> str:
        pattern = "".join(rf'[^>]*{name.rstrip("_")}="{value}"' for name, value in attributes.items())
        found = re.search(rf"<script{pattern}[^>]*>(.*?)</script>", self.html, re.DOTALL)
        assert found, attributes
        return found.group(1)


def page(tmp_path: Path, report: Report) -> Page:
    """Writes `report`, checks that the page loads nothing, and returns it parsed."""
    path = write_report(tmp_path, report)
    assert path == tmp_path / "report.html"
    html = Page(path.read_text(encoding="utf-8"))
    # Every address is an embedded image, a part of the page, or the empty icon.
    for tag, attributes in html.tags:
        for name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
            address = attributes.get(name)
            assert address is None or re.match(r"#|data:image/(png|jpeg);base64,|data:,$", address), (tag, address)
        assert not any(name.startswith("on") for name in attributes), attributes
    style = "".join(data for tag, data in html.texts if tag == "style")
    assert style.strip()
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|WebSocket)\b\s*\(", html.html)
    return html


def random_predictions(k: int, n: int = 400, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns random labels, predictions and confidences of n images in k classes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    prediction = np.where(rng.random(n) < 0.7, label, rng.integers(0, k, n))
    return label, prediction, rng.random(n)


def random_image(side: int = 8, seed: int = 0) -> np.ndarray:
    """Returns random pixels, uint8 [side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def full_report(k: int = 10) -> Report:
    """Returns a report with contents for every section."""
    label, prediction, confidence = random_predictions(k)
    history = [
        {"step": s, "epoch": s / 50, "split": "train", "time": 0.0, "loss": 2 / s, "learning_rate": 1e-3}
        for s in range(1, 101)
    ]
    history += [
        {"step": s, "epoch": s / 50, "split": "test", "time": 0.0, "top1": s / 200, "loss": 0.5} for s in (50, 100)
    ]
    return Report(
        title="vit_tiny",
        subtitle="Fine-tuned on cifar10.",
        facts={"data": "50,000 train"},
        metrics={"top1": 0.93421, "top5": 0.998, "loss": 0.2134, "calibration_error": 0.0211},
        best={"top1": 0.94},
        best_step=50,
        notes=["3 images could not be read."],
        history=history,
        classes=[f"class {i}" for i in range(k)],
        label=label,
        prediction=prediction,
        confidence=confidence,
        mistakes=[LabeledImage(image=random_image(), true=0, predicted=1, confidence=0.987, where="test[17]")],
        explanations=[
            LabeledImage(
                image=random_image(100), overlay=random_image(100, 1), true="cat", predicted="cat", confidence=0.5
            )
        ],
        explanation_method="Grad-CAM",
        config={"optimizer": {"name": "adamw", "learning_rate": 3e-4, "clip": math.inf}, "seed": 0},
        defaults={"optimizer": {"name": "adamw", "learning_rate": 1e-3, "clip": math.inf}, "seed": 0},
        command=["python", "-m", "jaxvision.main", "--workdir", "a b"],
        timing=Timing(seconds={"steps": 90.0, "compile": 10.0}, images_per_second=1234.5, step_seconds=0.1),
    )
