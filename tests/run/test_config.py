"""Configs: loading, overriding, completing, and the types of keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvision.errors import UserError
from jaxvision.run.config import complete, leaves, load, packaged
from jaxvision.run.explain import argument_texts, explain_keys, help_text
from jaxvision.run.values import convert, parse, type_text

MINIMAL = {"source": {"name": "digits"}, "model": {"name": "test_resnet"}, "optimizer": {"learning_rate": 0.1}}


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("5", int, 5),
        ("5", float, 5.0),
        ("1e-3", float, 1e-3),
        ("inf", float, float("inf")),
        ("5", str, "5"),
        ("True", bool, True),
        ("0", bool, False),
        ("None", int | None, None),
        ("None", str | None, None),
        ("sgd", str | None, "sgd"),
        ("224", int | tuple[int, int] | None, 224),
        ("224,160", int | tuple[int, int] | None, (224, 160)),
        ("[0.9, 1]", tuple[float, float], (0.9, 1.0)),
        ("0.5", tuple[float, ...], (0.5,)),
        ("a,b", Sequence[str], ("a", "b")),
        ("a", Sequence[str], ("a",)),
        ("model.safetensors", str | Path | None, "model.safetensors"),
        ("123", str | Path | None, "123"),
        ("bfloat16", Any, "bfloat16"),
        ("max", Literal["min", "max"], "max"),
        ("0.3", float | Sequence[float], 0.3),
        ("(0.3, 0.1, 0)", float | Sequence[float], (0.3, 0.1, 0.0)),
    ],
)
def test_flags_are_read_by_the_annotation(text: str, annotation: Any, value: Any) -> None:
    result = convert(parse(text, annotation), annotation)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (2.5, int, "an integer"),
        (True, int, "an integer"),
        (True, float, "a number"),
        ("1", float, "a number"),
        (1, bool, "True or False"),
        (None, int, "an integer"),
        (1, str | None, "a string or None"),
        ((1.0,), tuple[float, float], "a tuple of 2 values"),
        ((1.0, "x"), tuple[float, ...], "a tuple, each element a number"),
        ("med", Literal["min", "max"], "'min' or 'max'"),
        (0.5, Path | None, "a path or None"),
        ("x", float | jax.Array | np.ndarray, "a number or an array"),
        ("x", dict[str, int] | OrderedDict, "a dict or an OrderedDict"),
        ("f", Callable[[int], int], "a function"),
    ],
)
def test_values_of_another_type_are_refused(value: Any, annotation: Any, expected: str) -> None:
    with pytest.raises(TypeError):
        convert(value, annotation)
    assert type_text(annotation) == expected


def test_numbers_of_numpy_are_numbers() -> None:
    assert convert(np.float32(0.5), float) == 0.5
    assert convert(np.int64(3), int) == 3


def test_complete_fills_in_the_defaults_and_keeps_what_is_complete() -> None:
    config = complete(MINIMAL)
    assert config.train.epochs == 10.0
    assert config.lora.rank == 0
    assert config.model.image_size is None
    assert config.mesh.to_dict() == {"data": -1}
    assert complete(config).to_dict() == config.to_dict()


def test_an_override_takes_precedence_over_the_file() -> None:
    config = complete(MINIMAL, [("optimizer.learning_rate", "0.5"), ("seed", "3"), ("train.epochs", "2")])
    assert (config.optimizer.learning_rate, config.seed, config.train.epochs) == (0.5, 3, 2.0)


def test_the_name_of_an_override_decides_which_keys_there_are() -> None:
    config = complete(MINIMAL, [("source.data_dir", "images"), ("source.name", "folder")])
    assert config.source.data_dir == "images"
    with pytest.raises(UserError, match=r"config\.source\.data_dir: unknown key"):
        complete(MINIMAL, [("source.data_dir", "images")])
    config = complete(MINIMAL, [("model.name", "test_vit"), ("model.patch_size", "8")])
    assert config.model.patch_size == 8


def test_the_home_folder_in_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    source = {"name": "folder", "data_dir": "~/photos"}
    config = complete({**MINIMAL, "source": source}, [("model.checkpoint_path", "~/x.safetensors")])
    assert config.source.data_dir == str(tmp_path / "photos")
    assert config.model.checkpoint_path == str(tmp_path / "x.safetensors")
    (tmp_path / "mine.py").write_text("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()\n")
    assert load("~/mine.py").to_dict() == {}


def test_a_folder_of_configs_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config: got the folder .*, expected a Python file.* no Python files\."):
        load(str(tmp_path))
    (tmp_path / "mine.py").touch()
    with pytest.raises(UserError, match=r"expected a Python file with get_config\(\)\. Choose one of .*/mine\.py\."):
        load(f"{tmp_path}/")


def test_axes_of_the_mesh_that_the_file_omits() -> None:
    config = complete(MINIMAL, [("mesh.tensor", "2"), ("mesh.fsdp", "4")])
    assert config.mesh.to_dict() == {"data": -1, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {}}, r"config\.optimizer\.learning_rate: not set, expected a number"),
        ({"source": {"name": "folder"}}, r"config\.source\.data_dir: not set, expected a string"),
        ({"source": {}}, r"config\.source\.name: not set"),
        ({"model": {}}, r"config\.model\.name: not set"),
        ({"model": {"name": "test_resnet", "num_classes": 5}}, r"config\.model\.num_classes: this key cannot be set"),
        (
            {"train": {"epochs": "many"}},
            r"epochs: got 'many', expected a number or 'auto'\. Example: --config\.",
        ),
        ({"optimizer": {"learning_rate": "fast"}}, r"config\.optimizer\.learning_rate: got 'fast', expected a number"),
        ({"train": {"scan": 1}}, r"config\.train\.scan: got 1, expected True or False"),
        ({"data": {"batch_size": 32.0}}, r"config\.data\.batch_size: got 32\.0, expected an integer"),
        ({"data": {"batch_size": None}}, r"config\.data\.batch_size: got None, expected an integer"),
        ({"data": {"memory_limit": float("nan")}}, r"config\.data\.memory_limit: got nan, expected 0 or more"),
        ({"seed": 2**31}, r"config\.seed: got 2147483648"),
        ({"seed": 0.5}, r"config\.seed: got 0\.5, expected an integer"),
        ({"train": {"not_finite": "stopp"}}, r"Did you mean 'stop'"),
    ],
)
def test_mistakes_in_a_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        complete({**MINIMAL, **changes})


def test_help_works_for_a_config_that_is_not_complete(tmp_path: Path) -> None:
    file = tmp_path / "unfinished.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'source': {'name': 'digits'}, 'model': {'name': 'test_resnet'}})\n"
    )
    assert "--config.optimizer.learning_rate=None" in help_text(str(file))


def test_every_key_has_an_explanation() -> None:
    for name in packaged():
        config = load(name)
        texts = explain_keys(config)
        assert [key for key in leaves(complete(config)) if not texts.get(key)] == []


def test_texts_of_arguments_are_those_of_the_docstring() -> None:
    def function(*, a: int, b: int, c: int) -> None:
        """Does nothing.

        Args:
          a, b: two numbers that
            need two lines.
          c: of ``b`` and `a`.

        Returns:
          d: nothing.
        """

    assert argument_texts(function) == {
        "a": "two numbers that need two lines.",
        "b": "two numbers that need two lines.",
        "c": "of b and a.",
    }


def test_an_error_in_a_config_file_names_it(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def get_config():\n    return undefined\n")
    with pytest.raises(UserError, match=r"broken\.py: get_config raises NameError"):
        load(str(file))
    assert isinstance(load("configs/quickstart.py"), ConfigDict)
