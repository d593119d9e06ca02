"""The report as a page: complete, valid HTML that loads nothing, whatever its contents."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support.report_page import HOSTILE, full_report, page, random_image, random_predictions

from jaxvision.report import LabeledImage, Report, Timing, write_report


def test_a_full_report_has_every_section(tmp_path: Path) -> None:
    html = page(tmp_path, full_report())
    assert html.sections == [
        *("curves", "confusions", "classes", "calibration", "mistakes", "explanations", "time", "config"),
        "environment",
    ]
    for text in (
        "93.42",
        "best 94.00 % at step 50",
        "3 images could not be read.",
        "98.7 %",
        "test[17]",
        "Grad-CAM",
        "python -m jaxvision.main --workdir 'a b'",
        "1 of 4 values differ",
        f"{jax.__version__}",
        "compile",
    ):
        assert text in html.text, text
    assert html.all("tr", "changed") == [{"class": "changed"}]
    titles = [data for tag, data in html.texts if tag == "h3"]
    assert titles[:3] == ["Loss", "Top-1", "Learning rate"]
    images = [Image.open(io.BytesIO(base64.b64decode(str(i["src"]).partition(",")[2]))) for i in html.all("img")]
    assert [(i.format, i.size) for i in images] == [("PNG", (8, 8)), ("JPEG", (100, 100)), ("JPEG", (100, 100))]
    np.testing.assert_array_equal(np.asarray(images[0]), random_image())
    summary = html.data(id="jaxvision-report")
    assert summary["metrics"]["top1"] == 0.93421
    assert summary["config"]["optimizer"] == {"name": "adamw", "learning_rate": 3e-4, "clip": "Infinity"}
    assert summary["seconds"] == {"steps": 90.0, "compile": 10.0}


def test_names_with_html_are_escaped(tmp_path: Path) -> None:
    label = np.arange(30) % 3
    label[0] = 29
    for k in (3, 30):
        names = [f"{HOSTILE}{i}" for i in range(k)]
        bad = f'"><img src=http://x.invalid/{HOSTILE}'
        report = Report(
            title=bad,
            subtitle=bad,
            facts={bad: bad},
            notes=[bad],
            metrics={"top1": 0.5, bad: 1.0},
            history=[{"step": s, "epoch": None, "split": bad, "time": 0, bad: 1.0} for s in (1, 2)],
            classes=names,
            label=label % k,
            prediction=(label + 1) % k,
            confidence=np.full(30, 0.5),
            mistakes=[LabeledImage(image=random_image(), true=0, predicted=1, confidence=0.9, where=bad)],
            explanations=[LabeledImage(image=random_image(), overlay=random_image(), true=bad)],
            explanation_method=bad,
            config={bad: {bad: bad}, "a": [bad]},
            defaults={bad: {bad: 1}},
            command=[bad],
            environment={bad: bad},
            timing=Timing(seconds={bad: 1.0}),
        )
        html = page(tmp_path, report)
        # The only scripts are the page's own: its summary, page.js and, for many classes, the cells of the matrix.
        assert len(html.all("script")) == (2 if k == 3 else 3)
        assert not any("alert('x')" in data for tag, data in html.texts if tag == "script" and "const " in data)
        assert HOSTILE in html.text
        assert html.data(id="jaxvision-report")["title"] == bad
        if k == 30:
            assert html.data(class_="cells")["names"] == names


def test_a_page_of_1000_classes_is_small(tmp_path: Path) -> None:
    k, n = 1000, 200_000  # noise in every cell and every pixel compresses worst
    rng = np.random.default_rng(0)
    noise = [random_image(400, i) for i in range(80)]
    report = Report(
        title="x",
        classes=[f"a class with a long name, such as the synsets of WordNet have, number {i}" for i in range(k)],
        label=rng.integers(0, k, n),
        prediction=rng.integers(0, k, n),
        confidence=rng.random(n),
        history=[{"step": s, "split": "train", "loss": rng.random(), "grad_norm": rng.random()} for s in range(20_000)],
        mistakes=[LabeledImage(image=image, true=1, predicted=2, confidence=0.5) for image in noise],
        explanations=[LabeledImage(image=image, overlay=image) for image in noise[:10]],
    )
    html = page(tmp_path, report)
    assert len(html.html) < 5e6
    assert "Search 1,000 classes" in [i.get("placeholder") for i in html.all("input")]


def test_a_page_of_21841_classes_has_no_matrix(tmp_path: Path) -> None:
    label, prediction, _ = random_predictions(21_841, 5000)
    report = Report(title="x", classes=[str(i) for i in range(21_841)], label=label, prediction=prediction)
    html = page(tmp_path, report)
    assert not html.all("table", "confusion")
    assert not html.all("img")
    assert "The table lists the 1,200 classes of lowest accuracy, of 21,841." in html.text
    assert html.all("table", "pairs")


@pytest.mark.parametrize(
    "part",
    sorted({field.name for field in dataclasses.fields(Report)} - {"title", "environment"}),
)
def test_every_part_is_optional(tmp_path: Path, part: str) -> None:
    empty = {field.name: field for field in dataclasses.fields(Report)}[part]
    value = empty.default if empty.default is not dataclasses.MISSING else empty.default_factory()
    html = page(tmp_path, dataclasses.replace(full_report(), **{part: value}))
    gone = {
        "history": {"curves"},
        "label": {"confusions", "classes", "calibration"},
        "prediction": {"confusions", "classes", "calibration"},
        "confidence": {"calibration"},
        "mistakes": {"mistakes"},
        "explanations": {"explanations"},
        "config": {"config"},
        "timing": {"time"},
    }.get(part, set())
    everything = set(page(tmp_path, full_report()).sections)
    assert set(html.sections) == everything - gone


def test_a_title_is_enough(tmp_path: Path) -> None:
    assert page(tmp_path, Report(title="x")).sections == ["environment"]


def test_one_class_without_mistakes(tmp_path: Path) -> None:
    zeros = np.zeros(4, np.int32)
    html = page(tmp_path, Report(title="x", label=zeros, prediction=zeros, confidence=np.ones(4)))
    assert "No mistakes." in html.text
    assert "Well calibrated: confidence matches accuracy." in html.text


def test_a_diverged_run(tmp_path: Path) -> None:
    history = [{"step": s, "epoch": 0.0, "split": "train", "time": 0.0, "loss": math.nan} for s in range(100)]
    zeros = np.zeros(3, int)
    html = page(
        tmp_path,
        Report(
            title="x",
            metrics={"loss": math.nan, "top1": 0.1},
            history=history,
            label=zeros,
            prediction=zeros,
            confidence=np.full(3, np.nan),
        ),
    )
    assert "nan" in html.text
    assert html.data(id="jaxvision-report")["metrics"]["loss"] is None


def test_contents_that_do_not_match_raise(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    cases = {
        "expected uint8": Report(title="x", mistakes=[LabeledImage(image=np.zeros((4, 4, 3)))]),
        "prediction: got shape": Report(title="x", label=np.zeros(3, int), prediction=np.zeros(2, int)),
        "label: got values from 2 to 2, expected 0 to 1": Report(
            title="x", classes="ab", label=np.array([2]), prediction=np.array([0])
        ),
    }
    for message, report in cases.items():
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path, report)
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_config_dict_is_accepted(tmp_path: Path) -> None:
    from ml_collections import ConfigDict

    config = ConfigDict({"data": {"batch_size": 128, "mean": (0.5, 0.5)}, "empty": {}})
    html = page(tmp_path, Report(title="x", config=config, defaults=ConfigDict({"data": {"batch_size": 64}})))
    assert "2 of 3 values differ" not in html.text
    assert "3 of 3 values differ" in html.text
    assert html.data(id="jaxvision-report")["config"]["data"]["batch_size"] == 128
