"""The numbers in the sections of a report: curves, confusion matrix, classes and calibration."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.report_page import page, random_predictions

from jaxvision.report import MetricsWriter, Report
from jaxvision.report.charts import Line, line_chart
from jaxvision.report.predictions import Predictions


def test_curves_come_from_the_workdir(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        for step in range(1, 2001):
            metrics.write(step, "train", {"loss": 5.0 if step == 777 else 1 / step, "count": 8}, epoch=step / 500)
        metrics.write(2000, "test", {"loss": math.nan, "top1": 0.5}, epoch=4.0)
    html = page(tmp_path, Report(title="x"))
    charts = [json.loads(str(figure["data-chart"])) for figure in html.all("figure") if "data-chart" in figure]
    loss, top1 = charts
    assert loss["epochs"] == 4 / 2000
    train, test = loss["lines"]
    assert len(train["x"]) <= 402  # thinned, with its peak
    assert train["y"][train["x"].index(777)] == 5.0
    assert train["x"][0] == 1
    assert train["x"][-1] == 2000
    assert test == {"name": "test", "color": 1, "x": [2000], "y": [None]}
    assert top1["lines"] == [{"name": "test", "color": 1, "x": [2000], "y": [0.5]}]


@pytest.mark.parametrize(
    ("quantity", "low", "high", "labels"),
    [
        ("top1", 0.9027, 0.986, ["90.0 %", "92.5 %", "95.0 %", "97.5 %"]),
        ("top1", 0.2, 0.99, ["25 %", "50 %", "75 %", "100 %"]),
        ("loss", 2.01, 2.09, ["2.025", "2.05", "2.075"]),
        ("loss", 5.0, 5.0004, ["5", "5.0002", "5.0004"]),
    ],
)
def test_labels_of_an_axis_are_not_rounded(quantity: str, low: float, high: float, labels: list[str]) -> None:
    line = Line(name="test", x=np.array([1, 2]), y=np.array([low, high]))
    chart = line_chart("title", [line], quantity=quantity)
    axis = re.search(r'class="y-ticks">(.*?)</div>', chart)
    assert axis is not None
    assert re.findall(r">([^<]+)</span>", axis[1]) == labels


def test_lines_have_a_gap_at_nan() -> None:
    line = Line(name="train", x=np.arange(5.0), y=np.array([1.0, 2.0, np.nan, 3.0, 4.0]))
    (path,) = re.findall(r'<path d="([^"]*)" class="line c0">', line_chart("Loss", [line], quantity="loss"))
    assert re.sub(r"[-\d. ]+", "", path) == "MLML"
    assert re.findall(r"[ML]([\d.]+)", path) == ["0.0", "250.0", "750.0", "1000.0"]


@pytest.mark.parametrize("k", [2, 10])
def test_confusion_counts_in_the_table(tmp_path: Path, k: int) -> None:
    label, prediction, confidence = random_predictions(k)
    html = page(tmp_path, Report(title="x", label=label, prediction=prediction, confidence=confidence))
    cells = [int(str(td["data-count"])) for td in html.all("td") if "data-count" in td]
    expected = np.zeros((k, k), int)
    for i, j in zip(label, prediction, strict=True):
        expected[i, j] += 1
    np.testing.assert_array_equal(np.reshape(cells, (k, k)), expected)


@pytest.mark.parametrize("k", [30, 1000])
def test_confusion_counts_in_the_image(tmp_path: Path, k: int) -> None:
    label, prediction, confidence = random_predictions(k, 5000)
    html = page(tmp_path, Report(title="x", label=label, prediction=prediction, confidence=confidence))
    data = html.data(class_="cells")
    found = {(i, row[at], row[at + 1]) for i, row in enumerate(data["cells"]) for at in range(0, len(row), 2)}
    expected = Counter(zip(label.tolist(), prediction.tolist(), strict=True))
    assert found == {(i, j, n) for (i, j), n in expected.items()}
    assert data["totals"] == np.bincount(label, minlength=k).tolist()
    image = Image.open(io.BytesIO(base64.b64decode(str(html.all("img")[0]["src"]).partition(",")[2])))
    assert image.size == (k // data["pool"],) * 2
    shown = np.asarray(image.convert("RGBA"))
    for (i, j), _ in expected.items():
        assert shown[i // data["pool"], j // data["pool"], 3] > 0
    if data["pool"] == 1:
        assert (shown[..., 3] > 0).sum() == len(expected)
        blue = shown[..., 2] > shown[..., 0]
        np.testing.assert_array_equal(blue & (shown[..., 3] > 0), np.diag([(i, i) in expected for i in range(k)]))


def test_most_confused_pairs_and_classes(tmp_path: Path) -> None:
    # cat: 3 of 5 correct, 2 dogs; dog: 4 of 4; cow: 1 of 2, 1 cat; owl: no images.
    label = np.array([0] * 5 + [1] * 4 + [2] * 2)
    prediction = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 0])
    html = page(tmp_path, Report(title="x", classes=["cat", "dog", "cow", "owl"], label=label, prediction=prediction))
    assert [row["data-pair"] for row in html.all("tr") if "data-pair" in row] == ["0,1", "2,0"]
    assert "calibration" not in html.sections  # no confidences
    table = html.html[html.html.index('class="classes"') :]
    rows = re.findall(r"<tr>(.*?)</tr>", table[table.index("<tbody>") : table.index("</tbody>")])
    texts = [re.sub("<[^>]*>", "|", row).split("|") for row in rows]
    assert [[t for t in row if t] for row in texts] == [
        ["cow", "50.0 %", "100.0 %", "2", "cat", " 1"],
        ["cat", "60.0 %", "75.0 %", "5", "dog", " 2"],
        ["dog", "100.0 %", "66.7 %", "4"],
        ["owl", "—", "—", "0"],
    ]
    assert "Mean accuracy over the classes: 70.00 %." in html.text  # without owl, which has no images


def test_calibration_equals_a_loop_over_the_bins(tmp_path: Path) -> None:
    label, prediction, confidence = random_predictions(5, 3000, seed=1)
    confidence[:2] = [1.0, 1 / 15]  # edges belong to the bin below
    found = Predictions(names=list("abcde"), label=label, prediction=prediction, confidence=confidence).calibration()
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        hits = (label == prediction)[inside]
        assert found[2][b] == inside.sum()
        np.testing.assert_allclose(found[0][b], confidence[inside].mean(), rtol=1e-12)
        np.testing.assert_allclose(found[1][b], hits.mean(), rtol=1e-12)
        error += inside.mean() * abs(hits.mean() - confidence[inside].mean())
    html = page(tmp_path, Report(title="x", label=label, prediction=prediction, confidence=confidence))
    assert f"{100 * error:.2f}%" in html.text
