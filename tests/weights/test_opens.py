"""Loading opens the weight file once, and an export's config.json once."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.weights import files, timm

COUNTERS: list[Counter] = []


def count(event: str, arguments: tuple) -> None:
    """Counts files by name; Python calls this audit hook whenever it opens a file."""
    if event == "open" and COUNTERS:
        COUNTERS[-1][Path(str(arguments[0])).name] += 1


@functools.cache
def add_hook() -> None:
    sys.addaudithook(count)  # cannot be removed, so it counts only while there is a counter


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Counts opened files by name, and calls of safetensors' own `safe_open` under that name."""
    counter: Counter = Counter()

    def safe_open(path, *args, **options):
        counter["safe_open"] += 1
        return original(path, *args, **options)

    original = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", safe_open)
    add_hook()
    COUNTERS.append(counter)
    yield counter
    COUNTERS.clear()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    model = create_model("test_resnet", num_classes=2, image_size=64)
    return save_classifier(tmp_path / "export", Classifier(model, ("cat", "dog"), Preprocess(image_size=64)))


@pytest.mark.parametrize(
    ("load", "configs"),
    [
        (lambda folder: create_model("test_resnet", checkpoint_path=folder / "model.safetensors"), 0),
        (lambda folder: create_model("test_resnet", checkpoint_path=folder, num_classes=7), 0),
        (lambda folder: load_classifier(folder), 1),
        (lambda folder: load_classifier(folder.parent), 1),  # as a run's workdir
        (lambda folder: load_classifier("test_resnet", checkpoint_path=folder / "model.safetensors"), 1),
        (lambda folder: timm.load_timm(create_model("test_resnet"), folder), 0),
    ],
)
def test_each_file_is_opened_once(load: Callable, configs: int, export: Path, opens: Counter) -> None:
    load(export)
    assert opens["model.safetensors"] == 1
    assert opens["safe_open"] == 1
    assert opens["config.json"] == configs


def test_an_open_file_is_passed_along(export: Path, opens: Counter) -> None:
    file = files.open_weights(export)
    assert timm.num_classes(file, ("fc",)) == 2
    create_model("test_resnet", checkpoint_path=file)
    assert opens["model.safetensors"] == opens["safe_open"] == 1
