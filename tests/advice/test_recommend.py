"""`jaxvision.recommend`: the recommended model for each situation, its limits, notes and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

import jaxvision
from jaxvision.advice.choices import Training, catalog_choices
from jaxvision.advice.images import describe_folder
from jaxvision.advice.words import commands
from jaxvision.errors import UserError
from jaxvision.plan import GIB, Chip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes with 20 and 2 images of 120 x 90 pixels."""
    for label, n in (("cat", 20), ("dog", 2)):
        (tmp_path / "my photos" / label).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (120, 90), (i, 0, 0)).save(tmp_path / "my photos" / label / f"{i}.png")
    return tmp_path / "my photos"


@pytest.mark.parametrize(
    ("options", "best"),
    [
        ({"images": 800, "device": "cpu"}, "resnet50"),
        ({"images": 500_000, "device": "8GB"}, "vit_small_patch16_224"),
        ({"images": 800, "device": "t4"}, "vit_base_patch16_224"),
        ({"images": 800, "device": "phone"}, "tf_efficientnet_lite0"),
        ({"images": 800, "device": "t4", "metric": "speed"}, "efficientnet_b0"),
        ({"images": 800, "device": "t4", "max_params": "20M"}, "efficientnet_b4"),
    ],
)
def test_recommended_model(options: dict, best: str) -> None:
    found = jaxvision.recommend(**options)
    assert found.rows[0].architecture == best
    assert found.rows[0].name in found.reasons[0]
    assert len(found.rows) == 5
    assert len({row.architecture for row in found.rows}) == 5


def test_accuracy_ranks_by_published_accuracy_alone() -> None:
    rows = jaxvision.recommend(device="h100", metric="accuracy").rows
    assert [row.top1 for row in rows] == sorted((row.top1 for row in rows), reverse=True)
    free = [row.top1 for row in catalog_choices() if row.macs <= 200e9]
    assert rows[0].top1 == max(free)


def test_licenses() -> None:
    assert all(row.license_note is None for row in catalog_choices())
    assert {row.license for row in catalog_choices(license="cc-*")} == {"cc-by-nc-4.0"}
    assert {row.license for row in catalog_choices(license="*")} > {"cc-by-nc-4.0", "apache-2.0"}
    found = jaxvision.recommend(device="8GB", license="cc-by-nc-4.0")
    assert any("cc-by-nc-4.0: non-commercial use only" in note for note in found.notes)
    # timm's model cards: the first weights are Apache-2.0, the second CC-BY-NC-4.0.
    names = {row.name for row in catalog_choices()}
    assert "resnet50.a1_in1k" in names
    assert "resnet50.fb_swsl_ig1b_ft_in1k" not in names


def test_picks_that_are_left_out_are_named() -> None:
    found = jaxvision.recommend(images=800, device="t4", max_params="10M")
    assert "vit_base_patch16_224 (the limits that you set exclude it)" in found.reasons[0]
    assert all(row.params <= 10e6 for row in found.rows)
    found = jaxvision.recommend(images=800, device="0.5GB")
    assert "resnet50 (training needs 0.79 GiB)" in found.reasons[0]
    assert found.rows[0].architecture != "resnet50"


def test_a_step_that_does_not_fit_is_split() -> None:
    found = jaxvision.recommend(images=800, device="4GB")
    best = found.rows[0]
    assert (best.architecture, best.accumulate) == ("resnet50", 4)
    assert best.training_bytes <= 3 * GIB
    assert found.commands[-1].endswith("--config.train.accumulate=4")


def test_cost_of_resnet50_by_hand() -> None:
    """Against published counts: 4.11 G multiply-adds, 25.56 M parameters, 11.11 M activations."""
    row = next(row for row in catalog_choices() if row.name == "resnet50.a1_in1k")
    fast = Training(Chip("x", 100 * GIB, 2e12, 1e12, 1e15), batch_size=32, epochs=2.0, images=1000).cost(row)
    assert fast.images_per_second == pytest.approx(1e12 / (6 * 4.11e9), rel=1e-3)
    assert fast.training_seconds == pytest.approx(2 * 1000 * 6 * 4.11e9 / 1e12, rel=1e-3)
    assert fast.training_bytes == pytest.approx(16 * 25.56e6 + 32 * 20 * 11.11e6, rel=1e-3)
    slow = Training(Chip("x", 100 * GIB, 1e15, 1e15, 1e11), batch_size=32, epochs=2.0, images=None).cost(row)
    assert slow.images_per_second == pytest.approx(1e11 / (10 * 4 * 11.11e6), rel=1e-3)
    assert slow.training_seconds is None
    unknown = Training(Chip("x", 0), batch_size=32, epochs=2.0, images=1000).cost(row)
    assert (unknown.accumulate, unknown.images_per_second, unknown.training_seconds) == (1, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "vit_small_patch16_224.augreg_in21k_ft_in1k"])
def test_the_estimated_memory_is_an_upper_bound_of_the_compiled_step(name: str) -> None:
    from jaxvision import run
    from jaxvision.run.config import load

    config = load(f"configs/folder.py:{name}")
    config.data.batch_size = 8
    compiled = run.plan(config, device="100GB", num_classes=6, search=False).plans[0].total
    row = next(row for row in catalog_choices() if row.name == name)
    estimate = Training(Chip("x", 100 * GIB), batch_size=8, epochs=1.0, images=None).cost(row).training_bytes
    assert compiled < estimate < 1.7 * compiled


def test_facts_of_a_folder(photos: Path) -> None:
    found = describe_folder(photos)
    assert (found.total, found.classes, found.side) == (22, 2, 90)
    # A fifth of each class is held out, at least one image.
    assert (found.training, found.largest, found.smallest) == (17, ("cat", 16), ("dog", 1))
    answer = jaxvision.recommend(photos, device="8GB")
    assert any("The class dog has only 1 training image." in note for note in answer.notes)
    assert any("The class cat has 16 times the images of dog" in note for note in answer.notes)
    assert any("have 90 px and are enlarged to 224 px" in note for note in answer.notes)
    assert "'" + str(photos) + "'" in answer.commands[0]
    assert f"--config.source.data_dir='{photos}'" in answer.commands[1]


def test_the_command_is_one_that_runs(photos: Path) -> None:
    import shlex

    from jaxvision.cli.arguments import split_overrides
    from jaxvision.run.config import complete, load

    row = jaxvision.recommend(photos, device="4GB").rows[0]
    *_, train = commands(row, photos)
    words = shlex.split(train)
    config = complete(load(words[words.index("--config") + 1]), split_overrides(words[7:]))
    assert config.model.name == row.name
    assert config.source.data_dir == str(photos)
    assert config.train.accumulate == row.accumulate


def test_latency_excludes_slow_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxvision.advice import answer
    from jaxvision.advice.measure import Latency

    milliseconds = {"resnet50": 30.0}
    monkeypatch.setattr(
        answer, "measure_latency", lambda name, size, classes: Latency(milliseconds.get(name, 10.0), (9.0, 11.0), 20)
    )
    assert jaxvision.recommend(device="8GB", latency=math.inf).rows[0].architecture == "resnet50"
    lines: list[str] = []
    found = jaxvision.recommend(device="8GB", latency=20.0, log=lines.append)
    assert "resnet50" not in [row.architecture for row in found.rows]
    assert len(found.rows) == 5
    assert "resnet50 (its latency is above the limit)" in found.reasons[0]
    assert any("measured on this machine, not on 8GB" in note for note in found.notes)
    assert "resnet50.a1_in1k (1 of 8)" in lines[0]
    with pytest.raises(UserError, match=r"^latency: got 5 ms, expected 10 ms or more: the fastest of 8 models"):
        jaxvision.recommend(device="8GB", latency=5.0)


def test_measured_latency() -> None:
    from jaxvision.advice.measure import measure_latency

    found = measure_latency("test_resnet", 32, 3)
    assert 0 < found.quartiles[0] <= found.median <= found.quartiles[1]
    assert found.runs >= 20


def test_json(photos: Path) -> None:
    found = json.loads(json.dumps(jaxvision.recommend(photos, device="t4").as_dict(), allow_nan=False))
    assert found["images"]["total"] == 22
    assert found["rows"][0]["name"] == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert found["rows"][0]["top1"] == 85.108  # timm's results-imagenet.csv
    assert found["target"]["chip"]["name"] == "t4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "nowhere"}, "data: got 'nowhere', expected a folder that exists"),
        ({"device": "h10"}, "device: got 'h10', expected a device or a memory such as 8GB. Did you mean 'h100'"),
        ({"device": "0GB"}, "device: got 0GB, expected more than 0 GB"),
        ({"device": "0.01GB"}, r"device: got 0.01GB with 0.0075 GiB, expected at least"),
        ({"metric": "best"}, "metric: got 'best', expected one of 'accuracy', 'size', 'speed'"),
        ({"license": "gpl"}, "license: got 'gpl', expected a license of weights"),
        ({"license": "apple-*"}, "license: got 'apple-\\*', expected a license of weights with a published"),
        (
            {"max_params": 100},
            r"max_params: got 100, expected 1,968,680 or more: no model has fewer than mobilenetv2",
        ),
        ({"max_params": "many"}, "max_params: got 'many', expected a number such as 30M"),
        ({"images": 0}, "images: got 0, expected 1 or more"),
        ({"images": 5, "data": "photos"}, "images: got 5, expected 1 or more, and no data"),
        ({"latency": 0.0}, "latency: got 0, expected more than 0 milliseconds"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        jaxvision.recommend(**options)
