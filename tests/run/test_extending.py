"""A user's own source, model, augmentation, loss, metric, optimizer and schedule, named by a config."""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from ml_collections import ConfigDict
from support.paths import ROOT
from support.quick import quick, refused, start

from jaxvision import run
from jaxvision.classifier import load_classifier
from jaxvision.errors import UserError
from jaxvision.models import registry

#: The module that docs/extending.md shows, with one function of each kind.
MODULE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.DOTALL)[0]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the module above, importable from the current directory."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "mine"
    for name in ("mine", "losses", "wrong"):
        sys.modules.pop(name, None)
    for name in registry.architectures("*two_blocks"):
        registry.unregister_model(name)


@pytest.fixture
def module(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module above."""
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(mine)


def flags(**names: str) -> list[str]:
    return [
        "--config=configs/quickstart.py:resnet",
        "--workdir=run",
        "--config.mesh.data=1",
        "--config.data.batch_size=16",
        "--config.train.steps=4",
        "--config.loss.label_smoothing=0",
        "--config.augment.crop_padding=0",
        *[f"--config.{key.replace('__', '.')}={name}" for key, name in names.items()],
    ]


#: Quicker than the quickstart: small images, and a model of two blocks.
SMALL = {"source__name": "mine:stripes", "model__name": "two_blocks", "model__image_size": "16"}

EVERYTHING = {
    **SMALL,
    "source__side": "20",
    "augment__name": "mine:noise",
    "augment__strength": "3",
    "loss__kind": "mine:focal",
    "loss__gamma": "1.5",
    "metric__name": "mine:worst_class",
    "metric__scale": "10",
    "optimizer__name": "mine:signs",
    "schedule__name": "mine:halving",
    "schedule__times": "3",
    "schedule__warmup_epochs": "None",
    "checkpoint__best": "worst_class",
}


def test_one_of_each_by_flags(mine: str, capsys: pytest.CaptureFixture) -> None:
    status, _, err = start(capsys, *flags(**EVERYTHING))
    assert status == 0, err
    recorded = json.loads(Path("run/config.json").read_text())
    assert recorded["loss"]["kind"] == "mine:focal"
    assert recorded["loss"]["gamma"] == 1.5
    own = {"count": 32, "side": 20, "contrast": 100.0}
    assert recorded["source"] == {"name": "mine:stripes", "validation_fraction": None, **own}
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["split"] != "train"]
    assert evaluations
    assert all(0 <= line["worst_class"] <= 10 * line["top1"] for line in evaluations)
    rates = [line["learning_rate"] for line in lines if line["split"] == "train"]
    assert rates[-1] == pytest.approx(2e-3 * 0.5 ** (3 * 3 // 4))  # at step 3 of 4


def test_functions_in_a_config_resume_as_their_names_do(module: ModuleType) -> None:
    def config() -> ConfigDict:
        config = quick("resnet")
        config.source = ConfigDict({"name": module.stripes})
        config.model = ConfigDict({"name": "two_blocks", "image_size": 16})
        config.loss = ConfigDict({"kind": module.focal})
        config.optimizer = ConfigDict({"name": module.signs, "learning_rate": 1e-3})
        config.augment = ConfigDict({"name": module.noise})
        config.metric = ConfigDict({"name": module.worst_class})
        return config

    result = run.train(config(), "run")
    assert result["worst_class"] <= result["top1"]
    assert run.train(config(), "run") == result
    by_name = config()
    by_name.loss = ConfigDict({"kind": "mine:focal"})
    assert run.train(by_name, "run") == result
    by_name.loss.gamma = 0.0
    with pytest.raises(UserError, match=r"loss\.gamma 2\.0 -> 0\.0"):
        run.train(by_name, "run")


def test_an_optimizer_of_optax_by_its_name(mine: str, capsys: pytest.CaptureFixture) -> None:
    names = {"optimizer__name": "optax:lion", "optimizer__b1": "0.95", "optimizer__mu_dtype": "bfloat16"}
    status, _, err = start(capsys, *flags(**SMALL, **names))
    assert status == 0, err
    recorded = json.loads(Path("run/config.json").read_text())["optimizer"]
    assert (recorded["b1"], recorded["b2"], recorded["weight_decay"]) == (0.95, 0.99, 0.05)


def test_a_model_that_a_module_of_the_config_registers(mine: str, capsys: pytest.CaptureFixture) -> None:
    status, _, err = start(capsys, *flags(**SMALL, model__embed_dim="16"))
    assert status == 0, err
    recorded = json.loads(Path("run/config.json").read_text())["model"]
    assert (recorded["name"], recorded["embed_dim"]) == ("two_blocks", 16)
    assert "patch_size" not in recorded
    assert "Did you mean model.embed_dim" in refused(capsys, *flags(**SMALL, model__embed_dm="16"))
    assert "config.model.embed_dim: got 'wide', expected" in refused(capsys, *flags(**SMALL, model__embed_dim="wide"))
    _, out, _ = start(capsys, *flags(**SMALL), "--help")
    assert "--config.model.embed_dim=None width of the tokens of two_blocks." in " ".join(out.split())


def test_help_explains_the_keys_of_a_function(mine: str, capsys: pytest.CaptureFixture) -> None:
    status, out, _ = start(capsys, *flags(**EVERYTHING), "--help")
    assert status == 0
    text = " ".join(out.split())
    assert "--config.loss.gamma=1.5 exponent of the weight of easy images; 0 is the cross entropy." in text
    assert "--config.source.contrast=100.0 difference between dark and bright stripes." in text
    assert "--config.augment.strength=3.0 standard deviation, in 0 to 255." in text
    assert "--config.metric.scale=10.0 factor on the result." in text
    assert "--config.optimizer.flip=False ascend instead." in text
    assert "--config.schedule.times=3 how often." in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"loss__kind": "mine:focal", "loss__gama": "1"}, "Did you mean loss.gamma"),
        ({"loss__kind": "mine:focal", "loss__gamma": "much"}, "config.loss.gamma: got 'much', expected a number"),
        ({"source__name": "mine:stripes", "source__side": "2.5"}, "config.source.side: got 2.5, expected an integer"),
        ({"source__name": "mine:stripes", "source__split_seed": "1"}, "config.source.split_seed: unknown key"),
        (
            {"optimizer__name": "mine:signs", "optimizer__flip": "2"},
            "config.optimizer.flip: got 2, expected True or False",
        ),
        ({"loss__kind": "mine:focl"}, "has no 'focl'"),
        ({"loss__kind": "mein:focal"}, "cannot import 'mein'"),
        ({"loss__kind": ":focal"}, "loss.kind: got ':focal', expected \"package.module:function\", names with dots"),
        ({"loss__kind": "../mine:focal"}, "and without slashes or .py. Start the command in the folder of the module"),
        ({"loss__kind": "mine:"}, "loss.kind: got 'mine:', expected \"package.module:function\""),
        ({"loss__kind": "math:pi"}, "loss.kind: got 'math:pi' of type float, expected a function"),
        ({"metric__name": "worst_class"}, "metric.name: got 'worst_class', expected a metric"),
        ({"loss__gamma": "1"}, "config.loss.gamma: unknown key"),
        ({"metric__name": "mine:worst_class", "checkpoint__best": "worst_clas"}, "Did you mean 'worst_class'"),
        (
            {"optimizer__name": "mine:signs", "optimizer__learning_rate": "None"},
            "config.optimizer.learning_rate: not set",
        ),
    ],
)
def test_mistakes_are_refused(mine: str, names: dict[str, str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refused(capsys, *flags(**names))
    assert not Path("run").exists()


def test_a_function_that_cannot_be_found_again_is_refused(module: ModuleType) -> None:
    for function in (lambda: None, functools.partial(module.focal, gamma=1.0)):
        with pytest.raises(UserError, match=r"config\.loss\.kind: .* expected a function at the top level of a module"):
            run.complete({**quick("resnet"), "loss": {"kind": function}})


LOSSES = """
import optax

calls = []


def mean():
    def loss(logits, targets):
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return loss


def each():
    def loss(logits, targets):
        calls.append(logits.shape)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return loss
"""


def test_the_steps_are_traced_once_and_before_anything_is_written(mine: str, capsys: pytest.CaptureFixture) -> None:
    Path("losses.py").write_text(LOSSES)
    arguments = flags(**SMALL, mesh__data="2", train__evaluate_every="0.5")
    message = "loss.kind: got a loss of shape (), expected (16,): one per image."
    assert message in refused(capsys, *arguments, "--config.loss.kind=losses:mean")
    assert not Path("run").exists()
    status, _, err = start(capsys, *arguments, "--config.loss.kind=losses:each", "--config.data.eval_batch_size=8")
    assert status == 0, err
    calls = importlib.import_module("losses").calls
    assert calls == [(16, 2), (8, 2)]  # the train step, then the evaluation
    status, out, _ = start(capsys, *arguments, "--config.loss.kind=losses:each", "--config.data.eval_batch_size=8")
    assert status == 0
    assert "this run is finished" in out
    assert len(calls) == 2


def test_the_best_evaluation_is_marked_by_the_metric_of_the_config(mine: str, capsys: pytest.CaptureFixture) -> None:
    Path("mine.py").write_text(
        MODULE + "\n\nseen = []\n\n\ndef fewer(evaluation):\n    seen.append(1)\n    return -len(seen)\n"
    )
    status, out, err = start(
        capsys, *flags(**SMALL, train__evaluate_every="1", metric__name="mine:fewer", checkpoint__best="fewer")
    )
    assert status == 0, err
    evaluations = [line for line in out.splitlines() if line.startswith("validation at step")]
    assert ["best" in line for line in evaluations] == [True, False]
    assert "exporting the model of step 2, the best fewer on the validation data" in out


#: The module above as a config file.
OWN_CONFIG = f"""{MODULE}

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{
        "source": {{"name": stripes, "count": 16}},
        "model": {{"name": "test_vit", "image_size": 16, "patch_size": 8, "depth": 1}},
        "data": {{"batch_size": 8}},
        "loss": {{"kind": focal}},
        "optimizer": {{"learning_rate": 1e-3}},
        "train": {{"steps": 1}},
        "mesh": {{"data": 1}},
    }})
"""


def test_a_function_of_the_config_file_itself(mine: str, capsys: pytest.CaptureFixture) -> None:
    Path("own_config.py").write_text(OWN_CONFIG)
    flags = ("--config.loss.gamma=1", "--config.data.batch_size=32")
    status, out, err = start(capsys, "--config=own_config.py", "--workdir=run", *flags)
    assert status == 0, err
    assert "training takes only 1 step. Set" in " ".join(out.split())
    assert "data.batch_size: got 32 for 16 training images" in " ".join(out.split())
    assert json.loads(Path("run/config.json").read_text())["loss"]["kind"].endswith(":focal")


@pytest.mark.parametrize("name", ['"two_blocks"', "two_blocks"])
def test_a_model_of_the_config_file_itself_is_refused(name: str, mine: str, capsys: pytest.CaptureFixture) -> None:
    """A process that loads the export could not import it."""
    own = '"test_vit", "image_size": 16, "patch_size": 8, "depth": 1'
    assert own in OWN_CONFIG
    Path("own_config.py").write_text(OWN_CONFIG.replace(own, name))
    error = refused(capsys, "--config=own_config.py", "--workdir=run")
    assert "which is defined in the config file, expected a model in a module" in error
    assert not Path("run").exists()
    registry.unregister_model("two_blocks")  # as in a new process
    advice = re.search(r"config\.model\.name='(.*)'", error)
    assert advice is not None
    status, _, err = start(capsys, *flags(**SMALL | {"model__name": advice[1]}))
    assert status == 0, err
    assert load_classifier("run").model.architecture == "mine:two_blocks"


WRONG = """
import optax
from jaxvision.data import ArraySource, Splits
import numpy as np


def nothing(*args, **options):
    return None


def no_loss():
    return lambda logits, targets: None


def vector(learning_rate, *, steps):
    return lambda step: np.zeros(2)


def mixup_of_my_own(images, *, key, mixup: float = 0.7):
    return images


def accuracy():
    return 0.0


def top1(evaluation):
    return 0.0


def other_classes():
    def part(classes):
        images = np.zeros((8, 8, 8, 1), np.uint8)
        return ArraySource(images, np.arange(8) % 2, classes=classes, name="mine")
    return Splits(train=part(["a", "b"]), validation=None, test=part(["b", "a"]))


def floats():
    return Splits(train=ArraySource(np.zeros((8, 8, 8, 1), np.float32), np.zeros(8), classes=["a", "b"], name="mine"))
"""


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"source__name": "wrong:nothing"}, "source.name: the function returned None, expected jaxvision.data.Splits"),
        ({"source__name": "wrong:other_classes"}, "got other classes in the split 'test' than in 'train'"),
        ({"source__name": "wrong:floats"}, "got images float32 [8, 8, 8, 1] and 8 labels, expected images uint8"),
        ({"loss__kind": "wrong:nothing"}, "loss.kind: the function returned None, expected a function of"),
        ({"loss__kind": "wrong:no_loss"}, "loss.kind: the function returned None, expected an array"),
        ({"augment__name": "wrong:nothing"}, "augment.name: the function returned None, expected images"),
        ({"augment__name": "wrong:mixup_of_my_own"}, "whose argument 'mixup' is a key of augment already"),
        ({"optimizer__name": "wrong:nothing"}, "optimizer.name: the function returned None, expected an optax"),
        ({"schedule__name": "wrong:nothing"}, "schedule.name: the function returned None, expected a function of"),
        ({"schedule__name": "wrong:vector"}, "schedule.name: the function returned a value of type ndarray"),
        ({"metric__name": "wrong:accuracy"}, "metric.name: too many positional arguments. The function takes ()"),
        ({"metric__name": "wrong:top1"}, "metric.name: got 'top1', which is the name of another metric"),
    ],
)
def test_what_a_function_takes_and_returns_is_checked_first(
    mine: str, names: dict[str, str], message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("wrong.py").write_text(WRONG)
    assert message in refused(capsys, *flags(**names))
    assert not Path("run").exists()


def test_workers_read_a_source_of_the_config_file_itself(mine: str, capsys: pytest.CaptureFixture) -> None:
    config = OWN_CONFIG.replace("def get_config", OWN_SOURCE + "\n\ndef get_config").replace(
        '"name": stripes, "count": 16', '"name": of_many_sizes'
    )
    Path("own_config.py").write_text(config)
    status, _, err = start(capsys, "--config=own_config.py", "--workdir=run", "--config.data.workers=2")
    assert status == 0, err


OWN_SOURCE = '''class OfManySizes(ArraySource):
    def __getitem__(self, index):
        return {"image": np.full((20 + index, 24, 1), index, np.uint8), "label": index % 2}


def of_many_sizes():
    """Returns images of different sizes, which cannot be kept in one array."""
    def split():
        return OfManySizes(np.zeros((16, 8, 8, 1), np.uint8), np.arange(16) % 2, classes=["even", "odd"], name="mine")
    return Splits(train=split(), test=split())
'''
