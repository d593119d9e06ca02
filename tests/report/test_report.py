"""The console, the numbers on disk and the page: in a terminal and in a log, after a crash, and under hostile names."""

# ruff: noqa: RUF001, RUF003, the × that people read

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import math
import re
import struct
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
import rich.console
from PIL import Image

from jaxvision.report import (
    Clock,
    Console,
    MetricsWriter,
    Picture,
    Report,
    Timing,
    environment,
    machine,
    read_metrics,
    write_report,
)
from jaxvision.report import console as console_module
from jaxvision.report.answers import Answers
from jaxvision.report.charts import Line, line_chart
from jaxvision.report.files import write_atomically

# The console.


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def run(console: Console, *, steps: int = 100) -> None:
    console.start(
        model="vit_tiny_patch16_224",
        parameters=5_717_416,
        trainable=1_930,
        dataset="cifar10",
        classes=10,
        data={"train": 50_000, "test": 10_000},
        devices="8 × TPU v5",
        steps=steps,
        steps_per_epoch=50,
        workdir="runs/x",
    )
    for step in range(1, steps + 1):
        console.step(step, epoch=step / 50, loss=2.0 / step, images_per_second=1234.5, data_wait=0.034)
    assert list(console.evaluation(iter("abc"), total=3, name="test")) == ["a", "b", "c"]
    console.result({"top1": 0.93421, "loss": 0.25}, name="test", step=steps, epoch=2, best=True)
    console.note("[bold]17.jpg[/bold] cannot be read")
    console.finish(
        final={"top1": 0.93421, "top5": 0.998, "loss": 0.2134, "calibration_error": 0.021},
        best={"top1": 0.9401, "loss": 0.2},
        best_step=50,
        timing=Timing(
            seconds={"steps": 90.0, "data wait": 10.0, "compile": 12.34}, images_per_second=1200.0, step_seconds=0.103
        ),
        files={"report": Path("runs/x/report.html")},
    )


def test_plain_lines_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services do
    out = io.StringIO()
    with Console(out, every=1e9) as console:
        run(console)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.splitlines() == [
        "vit_tiny_patch16_224",
        "  parameters  5,717,416, of which 1,930 trainable",
        "  data        cifar10, 10 classes: 50,000 train, 10,000 test",
        "  devices     8 × TPU v5",
        "  steps       100: 2 epochs of 50",
        "  workdir     runs/x",
        "step 1/100  epoch 0.02/2  loss 2.0000  1,234 images/s  data wait 3 %",
        "step 100/100  epoch 2.00/2  loss 0.0200  1,234 images/s  data wait 3 %",
        "test at step 100  epoch 2  top-1 93.42 %  loss 0.2500  ★ best",
        "[bold]17.jpg[/bold] cannot be read",
        "",
        "            final   best, step 50",
        "  top-1   93.42 %         94.01 %",
        "  top-5   99.80 %               —",
        "  loss     0.2134          0.2000",
        "  ECE      2.10 %               —",
        "",
        "  images/s     1,200",
        "  median step  103 ms",
        "  data wait    10 %",
        "  compilation  12.3 s",
        "  time in all  1:52",
        "  report       runs/x/report.html",
    ]


def test_plain_lines_come_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Console(out, every=30) as console:
        console.start(model="m", parameters=1, devices="d", steps=100)
        for step in range(1, 61):
            now[0] += 1.0  # a second each
            console.step(step)
        for _ in console.evaluation(range(90), total=90, name="test"):
            now[0] += 1.0
        now[0] += 1.0
        console.step(61)
    lines = out.getvalue().splitlines()[4:]
    # 99 steps of a second are left after the first; the pace is known from the second line on. The evaluation of 90
    # seconds after 60 steps adds 90 / 60 for each step to come, 39 of them: 39 × (1 + 90 / 61) = 96.5.
    assert lines == [
        "step 1/100",
        "step 31/100  1:09 left",
        "test  30/90 batches",
        "test  60/90 batches",
        "step 61/100  1:37 left",
    ]


def test_live_bar_on_a_terminal(terminal: Terminal) -> None:
    stdout, stderr = sys.stdout, sys.stderr
    with Console(terminal) as console:
        assert sys.stdout is not stdout  # what others print goes above the bar
        run(console)
    assert sys.stdout is stdout
    assert sys.stderr is stderr
    text = terminal.getvalue()
    assert "━" in text
    assert "100/100" in text
    assert "\x1b[?25l" not in text  # the cursor is never hidden, so nobody has to bring it back
    assert "93.42 %" in text
    assert "[bold]17.jpg[/bold]" in text


def test_the_bar_leaves_room_for_the_echo_of_an_interrupt(terminal: Terminal) -> None:
    console = Console(terminal)
    console.start(model="m", parameters=1, devices="d", steps=10)
    out = io.StringIO()
    rich.console.Console(file=out, width=100).print(console._bars())
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines()) <= 96


def test_interrupt_leaves_the_terminal_in_order(terminal: Terminal) -> None:
    stdout = sys.stdout

    def interrupted() -> None:
        with Console(terminal) as console:
            console.start(model="m", parameters=1, devices="d", steps=10)
            console.step(4, loss=1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sys.stdout is stdout
    assert terminal.getvalue().rstrip().endswith("stopped at step 4 of 10")


def test_a_stream_without_unicode_is_no_obstacle() -> None:
    raw = io.BytesIO()
    with Console(io.TextIOWrapper(raw, encoding="ascii", write_through=True)) as console:
        run(console)
        console.warn("Käfer")
    text = raw.getvalue().decode("ascii")
    assert "devices     8 x TPU v5" in text
    assert "* best" in text
    assert "warning: K?fer" in text


def test_other_processes_are_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: Terminal) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Console(terminal) as console, MetricsWriter(tmp_path / "x") as metrics:
        run(console)
        metrics.write(1, "train", {"loss": 1.0})
    assert terminal.getvalue() == ""
    assert not (tmp_path / "x").exists()


def test_an_evaluation_alone_needs_no_steps(terminal: Terminal) -> None:
    with Console(terminal) as console:
        console.start(model="m", parameters=1, devices="d", data={"test": 3})
        assert list(console.evaluation([1, 2, 3])) == [1, 2, 3]
        console.finish(final={"top1": 1.0})
    assert "steps" not in terminal.getvalue()


# Where the time goes.


def test_clock_divides_the_time() -> None:
    now = [0.0]
    clock = Clock(now=lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    with clock.part("compile"):
        spend(20)
    for _ in range(4):
        with clock.part("data wait"):
            spend(1)
        spend(3)  # the step itself
        clock.step(images=8)
    with clock.part("evaluation"), clock.part("data wait"):  # a part within a part is the outer one's
        spend(5)
    assert clock.lap() == {"images_per_second": 32 / 16, "data_wait": 4 / 16, "step_seconds": 4.0}
    assert clock.lap() == {}
    with contextlib.suppress(RuntimeError), clock.part("checkpoint"):
        spend(2)
        raise RuntimeError
    timing = clock.timing()
    assert timing.seconds == {"steps": 12, "compile": 20, "data wait": 4, "evaluation": 5, "checkpoint": 2}
    assert timing.total == 43
    assert timing.images_per_second == 2.0
    assert timing.data_wait == 0.25
    assert timing.step_seconds == 4.0


def test_clock_of_an_evaluation_alone() -> None:
    now = [0.0]
    clock = Clock(now=lambda: now[0])
    with clock.part("evaluation"):
        now[0] += 3
    timing = clock.timing()
    assert timing.seconds == {"evaluation": 3.0}
    assert timing.images_per_second is timing.data_wait is timing.step_seconds is None


# The numbers on disk.


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Reads TensorBoard's files by hand: length (8), its checksum (4), the event, its checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (n,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + n])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + n :]
    return found


def test_metrics_of_a_run_in_both_forms(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(10, "train", {"loss": np.float32(2.5), "learning_rate": 1e-3}, epoch=0.5)
        metrics.write(10, "test", {"top1": jax.numpy.asarray(0.25)}, epoch=0.5)
        assert len(read_metrics(tmp_path)) == 2  # on disk at once
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("time") > 1.6e9 for line in lines] == [True, True]
    assert lines == [
        {"step": 10, "epoch": 0.5, "split": "train", "loss": 2.5, "learning_rate": 0.001},
        {"step": 10, "epoch": 0.5, "split": "test", "top1": 0.25},
    ]
    assert events(tmp_path / "tensorboard") == [
        ("train/loss", 10, 2.5),
        ("train/learning_rate", 10, pytest.approx(1e-3)),
        ("test/top1", 10, 0.25),
    ]


def test_resuming_drops_what_is_measured_again(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in (10, 20, 30, 40):
            metrics.write(step, "train", {"loss": 1.0})
        metrics.write(20, "test", {"top1": 0.1})
        metrics.write(40, "test", {"top1": 0.2})
    with MetricsWriter(tmp_path, resume_step=20) as metrics:
        metrics.write(20, "test", {"top1": 0.9})  # evaluated again after the restore: on file already
        for step in (30, 40):
            metrics.write(step, "train", {"loss": 2.0})
    found = [(line["split"], line["step"], line.get("loss", line.get("top1"))) for line in read_metrics(tmp_path)]
    assert found == [("train", 10, 1.0), ("train", 20, 1.0), ("test", 20, 0.1), ("train", 30, 2.0), ("train", 40, 2.0)]
    with MetricsWriter(tmp_path) as metrics:  # not resumed: a new run
        metrics.write(10, "train", {"loss": 3.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(10, 3.0)]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(1, "train", {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "spl')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    with MetricsWriter(tmp_path, resume_step=5, tensorboard=False) as metrics:
        metrics.write(2, "train", {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_nan_is_null_in_json(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write(1, "train", {"loss": math.nan, "grad_norm": math.inf})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["loss"] is None
    assert line["grad_norm"] is None
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])
    assert read_metrics(tmp_path)[0]["epoch"] is None


def test_values_cannot_take_the_names_of_a_lines_keys(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics, pytest.raises(ValueError, match="step"):
        metrics.write(1, "train", {"step": 1.0})


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_environment_names_versions_and_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.git_revision() is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    revision = environment()["git revision"]
    assert re.fullmatch("[0-9a-f]{12}", revision)
    (tmp_path / "a").write_text("2")
    assert environment()["git revision"] == f"{revision}, with changes"
    assert environment()["jax"] == jax.__version__
    assert environment()["devices"] == f"{jax.device_count()} × {jax.devices()[0].device_kind}"


# The page.

VOID = {"meta", "link", "br", "img", "input"}
HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a page is made of; fails where its tags do not pair up."""

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
        """The JSON of the script element with these attributes."""
        return json.loads(self.script(**attributes))

    def script(self, **attributes: str) -> str:
        pattern = "".join(rf'[^>]*{name.rstrip("_")}="{value}"' for name, value in attributes.items())
        found = re.search(rf"<script{pattern}[^>]*>(.*?)</script>", self.html, re.DOTALL)
        assert found, attributes
        return found.group(1)


def page(tmp_path: Path, report: Report) -> Page:
    path = write_report(tmp_path, report)
    assert path == tmp_path / "report.html"
    html = Page(path.read_text(encoding="utf-8"))
    # Nothing is loaded: all addresses are pictures inside, parts of the page, or the empty icon.
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


def answers(k: int, n: int = 400, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    prediction = np.where(rng.random(n) < 0.7, label, rng.integers(0, k, n))
    return label, prediction, rng.random(n)


def picture(side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def full_report(k: int = 10) -> Report:
    label, prediction, confidence = answers(k)
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
        notes=["3 pictures could not be read."],
        history=history,
        classes=[f"class {i}" for i in range(k)],
        label=label,
        prediction=prediction,
        confidence=confidence,
        mistakes=[Picture(image=picture(), true=0, predicted=1, confidence=0.987, where="test[17]")],
        explanations=[
            Picture(image=picture(100), overlay=picture(100, 1), true="cat", predicted="cat", confidence=0.5)
        ],
        explanation_method="Grad-CAM",
        config={"optimizer": {"name": "adamw", "learning_rate": 3e-4, "clip": math.inf}, "seed": 0},
        defaults={"optimizer": {"name": "adamw", "learning_rate": 1e-3, "clip": math.inf}, "seed": 0},
        command=["python", "-m", "jaxvision.main", "--workdir", "a b"],
        timing=Timing(seconds={"steps": 90.0, "compile": 10.0}, images_per_second=1234.5, step_seconds=0.1),
    )


def test_page_holds_what_it_should(tmp_path: Path) -> None:
    html = page(tmp_path, full_report())
    assert html.sections == [
        *("curves", "confusions", "classes", "calibration", "mistakes", "explanations", "time", "config"),
        "environment",
    ]
    for text in (
        "93.42",
        "best 94.00 % at step 50",
        "3 pictures could not be read.",
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
    np.testing.assert_array_equal(np.asarray(images[0]), picture())
    summary = html.data(id="jaxvision-report")
    assert summary["metrics"]["top1"] == 0.93421
    assert summary["config"]["optimizer"] == {"name": "adamw", "learning_rate": 3e-4, "clip": "Infinity"}
    assert summary["seconds"] == {"steps": 90.0, "compile": 10.0}


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
    assert len(train["x"]) <= 402  # thinned, but a peak is still there
    assert train["y"][train["x"].index(777)] == 5.0
    assert train["x"][0] == 1
    assert train["x"][-1] == 2000
    assert test == {"name": "test", "color": 1, "x": [2000], "y": [None]}
    assert top1["lines"] == [{"name": "test", "color": 1, "x": [2000], "y": [0.5]}]


def test_lines_have_a_gap_at_nan() -> None:
    line = Line(name="train", x=np.arange(5.0), y=np.array([1.0, 2.0, np.nan, 3.0, 4.0]))
    (path,) = re.findall(r'<path d="([^"]*)" class="line c0">', line_chart("Loss", [line], quantity="loss"))
    assert re.sub(r"[-\d. ]+", "", path) == "MLML"
    assert re.findall(r"[ML]([\d.]+)", path) == ["0.0", "250.0", "750.0", "1000.0"]


@pytest.mark.parametrize("k", [2, 10])
def test_confusion_counts_in_the_table(tmp_path: Path, k: int) -> None:
    label, prediction, confidence = answers(k)
    html = page(tmp_path, Report(title="x", label=label, prediction=prediction, confidence=confidence))
    cells = [int(str(td["data-count"])) for td in html.all("td") if "data-count" in td]
    expected = np.zeros((k, k), int)
    for i, j in zip(label, prediction, strict=True):
        expected[i, j] += 1
    np.testing.assert_array_equal(np.reshape(cells, (k, k)), expected)


@pytest.mark.parametrize("k", [30, 1000])
def test_confusion_counts_in_the_picture(tmp_path: Path, k: int) -> None:
    label, prediction, confidence = answers(k, 5000)
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
    # cat: 3 of 5 right, 2 dogs; dog: 4 of 4; cow: 1 of 2, 1 cat; owl: no images.
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
    assert "On average 70.00 % of a class" in html.text  # of the classes that have images


def test_calibration_by_hand(tmp_path: Path) -> None:
    label, prediction, confidence = answers(5, 3000, seed=1)
    confidence[:2] = [1.0, 1 / 15]  # edges belong to the bin below
    found = Answers(names=list("abcde"), label=label, prediction=prediction, confidence=confidence).calibration()
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


def test_hostile_names_stay_texts(tmp_path: Path) -> None:
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
            mistakes=[Picture(image=picture(), true=0, predicted=1, confidence=0.9, where=bad)],
            explanations=[Picture(image=picture(), overlay=picture(), true=bad)],
            explanation_method=bad,
            config={bad: {bad: bad}, "a": [bad]},
            defaults={bad: {bad: 1}},
            command=[bad],
            environment={bad: bad},
            timing=Timing(seconds={bad: 1.0}),
        )
        html = page(tmp_path, report)
        # The scripts are the page's own: its data, for many classes the cells, and page.js.
        assert len(html.all("script")) == (2 if k == 3 else 3)
        assert not any("alert('x')" in data for tag, data in html.texts if tag == "script" and "const " in data)
        assert HOSTILE in html.text
        assert html.data(id="jaxvision-report")["title"] == bad
        if k == 30:
            assert html.data(class_="cells")["names"] == names


def test_thousand_classes_stay_small(tmp_path: Path) -> None:
    k, n = 1000, 200_000  # the worst case: noise in every cell and every pixel
    rng = np.random.default_rng(0)
    noise = [picture(400, i) for i in range(80)]
    report = Report(
        title="x",
        classes=[f"a class with a long name, such as the synsets of WordNet have it, number {i}" for i in range(k)],
        label=rng.integers(0, k, n),
        prediction=rng.integers(0, k, n),
        confidence=rng.random(n),
        history=[{"step": s, "split": "train", "loss": rng.random(), "grad_norm": rng.random()} for s in range(20_000)],
        mistakes=[Picture(image=image, true=1, predicted=2, confidence=0.5) for image in noise],
        explanations=[Picture(image=image, overlay=image) for image in noise[:10]],
    )
    html = page(tmp_path, report)
    assert len(html.html) < 5e6
    assert "Find among 1,000 classes" in [i.get("placeholder") for i in html.all("input")]


def test_very_many_classes_have_no_matrix(tmp_path: Path) -> None:
    label, prediction, _ = answers(21_841, 5000)
    report = Report(title="x", classes=[str(i) for i in range(21_841)], label=label, prediction=prediction)
    html = page(tmp_path, report)
    assert not html.all("table", "confusion")
    assert not html.all("img")
    assert "The worst 1,200 of 21,841 classes are listed." in html.text
    assert html.all("table", "pairs")


@pytest.mark.parametrize(
    "part",
    sorted({field.name for field in dataclasses.fields(Report)} - {"title", "environment"}),
)
def test_any_part_may_be_missing(tmp_path: Path, part: str) -> None:
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


def test_title_alone_is_a_report(tmp_path: Path) -> None:
    assert page(tmp_path, Report(title="x")).sections == ["environment"]


def test_no_mistakes_and_one_class(tmp_path: Path) -> None:
    zeros = np.zeros(4, np.int32)
    html = page(tmp_path, Report(title="x", label=zeros, prediction=zeros, confidence=np.ones(4)))
    assert "No mistakes at all." in html.text
    assert "The model is as sure as it is right." in html.text


def test_numbers_of_a_diverged_run(tmp_path: Path) -> None:
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


def test_what_does_not_fit_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    cases = {
        "uint8": Report(title="x", mistakes=[Picture(image=np.zeros((4, 4, 3)))]),
        "prediction is": Report(title="x", label=np.zeros(3, int), prediction=np.zeros(2, int)),
        "2 names of classes": Report(title="x", classes="ab", label=np.array([2]), prediction=np.array([0])),
    }
    for message, report in cases.items():
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path, report)
    assert (tmp_path / "report.html").read_text() == "old"


def test_config_dict_is_read_as_a_dictionary(tmp_path: Path) -> None:
    from ml_collections import ConfigDict

    config = ConfigDict({"data": {"batch_size": 128, "mean": (0.5, 0.5)}, "empty": {}})
    html = page(tmp_path, Report(title="x", config=config, defaults=ConfigDict({"data": {"batch_size": 64}})))
    assert "2 of 3 values differ" not in html.text
    assert "3 of 3 values differ" in html.text
    assert html.data(id="jaxvision-report")["config"]["data"]["batch_size"] == 128
