"""Explains the keys of a config: the flag of each, its value, and the text of its function's docstring."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxvision.run.config import complete, leaves, load
from jaxvision.run.sections import SECTIONS


def help_text(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> str:
    """Returns every key of a config file, with its value and its explanation.

    Args:
      spec: as for `load`.
      overrides: as for `complete`.
    """
    config = complete(load(spec), overrides, check=False)
    texts = explain_keys(config)
    lines = ["keys of this config, with their values:"]
    for key, value in leaves(config).items():
        lines.append(f"  --config.{key}={value}")
        lines += textwrap.wrap(texts.get(key, ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


_TOP_LEVEL_TEXTS = {
    "seed": "seed of everything random: weights, order and augmentation, from 0 to 2**31 - 1.",
    "mesh.data": "devices along the axis that batches are split over. -1: all devices that the other axes leave.",
    "mesh.fsdp": "devices along the axis that batches, parameters, gradients and optimizer state are split over.",
    "mesh.tensor": "devices along the axis that the layers are split over; they compute on the same images.",
}


def explain_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns ``{"section.key": explanation}`` from the docstrings of the sections' functions.

    Args:
      config: from `load` or `complete`.

    Example:
      >>> explain_keys(load("configs/quickstart.py:vit"))["train.log_every"]
      'steps between lines of metrics.jsonl.'
    """
    config = complete(config, check=False)
    texts = dict(_TOP_LEVEL_TEXTS)
    for name, section in SECTIONS.items():
        functions = list(section.functions)
        if section.choice is not None and (chosen := config[name][section.choice.key]) is not None:
            function = section.choice.function(chosen)
            if function is not None:
                # `create_model` explains the arguments that all models have, a model's class only its own.
                functions.insert(0 if section.choice.optional else len(functions), function)
        for function in functions:
            texts |= {f"{name}.{key}": text for key, text in argument_texts(function).items()}
    return texts


def argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Returns the texts under ``Args:`` of a function's docstring in Google style, by argument.

    >>> argument_texts(len), argument_texts(help_text)["spec"]
    ({}, 'as for load.')
    """
    lines = (inspect.getdoc(function) or "").splitlines()
    if "Args:" not in lines:
        return {}
    texts: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :]:
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent == 0:
            break
        if indent == 2:
            name, _, text = line.strip().partition(": ")
            texts[name] = text
        else:
            texts[name] += " " + line.strip()
    for joined in [name for name in texts if ", " in name]:
        texts |= dict.fromkeys(joined.split(", "), texts.pop(joined))
    return {name.lstrip("*"): text.replace("``", "").replace("`", "") for name, text in texts.items()}
