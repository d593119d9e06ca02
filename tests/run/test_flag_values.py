"""Flags accept every value that docs/configs.md shows, which it takes from the texts that are read here."""

from __future__ import annotations

import re

import pytest

from jaxvision.data.source import SOURCES, source_function
from jaxvision.errors import UserError
from jaxvision.run.config import complete, leaves, load
from jaxvision.run.explain import argument_texts, explain_keys

CONFIGS = [f"configs/quickstart.py:{family}" for family in ("resnet", "vit", "efficientnet")]

NUMBER = r"-?\d[\d.]*(?:e-?\d+)?"
#: Patterns of values in a text -> the flag's text, and the value.
SHOWN = [
    (rf"(?:such as|[Dd]efault(?: is)?:?|one number or|;) ({NUMBER})\b(?! of)", "{}", float),
    (r"\b(True|False|None)\b", "{}", None),
    (rf"(?<!in )(\({NUMBER}(?:, {NUMBER})+\))", "{}", tuple),  # not the interval in "in (0, 1)"
    (r"(\[\"[^]]*\])", "{}", tuple),
    (r"(\(height, width\))", "(64,96)", tuple),
    (r"(one number or three)", "0.4", float),
    (r"(one number or three)", "(0.4,0.3,0.2)", tuple),
]


def shown(text: str) -> list[tuple[str, type | None]]:
    """Returns the values that a text shows, and their types."""
    return [(flag.format(match), kind) for pattern, flag, kind in SHOWN for match in re.findall(pattern, text)]


def test_values_are_found_in_texts() -> None:
    text = 'one number or three, such as 0.75. Default (0.9, 0.999); True is 0.5. Or ["a", "b"] or (height, width).'
    found = {flag for flag, _ in shown(text)}
    assert found == {"0.75", "True", "(0.9, 0.999)", '["a", "b"]', "(64,96)", "0.4", "(0.4,0.3,0.2)"}


@pytest.mark.parametrize("spec", CONFIGS)
def test_every_default_is_accepted_as_a_flag(spec: str) -> None:
    config = complete(load(spec))
    texts = [(key, str(value)) for key, value in leaves(config).items()]
    assert complete(load(spec), texts).to_dict() == config.to_dict()


@pytest.mark.parametrize("spec", CONFIGS)
def test_every_value_that_is_shown_is_accepted_as_a_flag(spec: str) -> None:
    config = load(spec)
    refused, count = [], 0
    texts = explain_keys(config)
    for key in leaves(complete(config)):
        for flag, kind in shown(texts[key]):
            count += 1
            try:
                value = leaves(complete(config, [(key, flag)], check=False))[key]
            except UserError as e:
                refused.append(str(e))
                continue
            if kind is not None and not isinstance(value, (int, float) if kind is float else kind):
                refused.append(f"{key}={flag} becomes {value!r}")
    assert not refused
    assert count > 30


@pytest.mark.parametrize("name", SOURCES)
def test_every_value_of_a_source_is_accepted_as_a_flag(name: str) -> None:
    required = [("source.name", name)]
    required += {"folder": [("source.data_dir", "x")], "tfds": [("source.dataset", "x")]}.get(name, [])
    for key, text in argument_texts(source_function(name)).items():
        for flag in [flag for flag, _ in shown(text)] + re.findall(r'"([^"]+)"', text):
            complete(load(CONFIGS[0]), [*required, (f"source.{key}", flag)], check=False)


def test_the_trainer_takes_square_images_and_its_help_says_so() -> None:
    with pytest.raises(UserError, match=r"config\.model\.image_size: got \(64, 96\), expected an integer"):
        complete(load(CONFIGS[1]), [("model.image_size", "(64,96)")])
    assert "square" in explain_keys(load(CONFIGS[1]))["model.image_size"]
    assert complete(load(CONFIGS[1]), [("model.patch_size", "(4,8)")]).model.patch_size == (4, 8)
