"""The config: a section is splatted into one function, whose signature has its keys, their types and their defaults."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ml_collections import ConfigDict, config_dict

from jaxvision.augment import on_device
from jaxvision.checkpoint import Checkpoints
from jaxvision.create import create_model
from jaxvision.data import source
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models import registry
from jaxvision.parallel.mesh import AXES
from jaxvision.train import optim, partial
from jaxvision.train.blocks import REMAT
from jaxvision.train.loss import make_loss
from jaxvision.train.schedule import make_schedule
from jaxvision.weights import catalog


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The section ``train``: how long, and what happens on the way.

    Args:
      epochs: passes over the training data; may be a fraction.
      steps: number of steps, instead of epochs.
      accumulate: microbatches per step: the memory of one, the gradient of all.
      ema_decay: weight of the old value in the moving average of parameters and BatchNorm statistics, such as 0.9998;
        None keeps no average. With one, the average is evaluated and exported.
      ema_warmup: let the average forget quickly at first (decay 1 - (1 + t)^(-2/3), up to `ema_decay`).
      evaluate_every: epochs between evaluations; there is always one at the end.
      patience: stop after this many evaluations without a better top-1; None never stops early.
      log_every: steps between lines of metrics.jsonl.
      save_every: steps between checkpoints, beside the one at each evaluation; None: those only.
      remat: what a block of the model keeps for the backward pass, which computes the rest a second time: "products"
        (of matrices, and convolutions) or "nothing" (but what went in). None leaves it to the compiler; with `scan`
        or mesh.fsdp it is "products".
      scan: compile blocks that are alike as one loop: a deep ViT compiles in the time of a shallow one.
      not_finite: "stop" or "skip" where a step's loss or gradient is not finite. Such a step changes nothing either
        way, and its images are listed in not_finite.jsonl. The tenth in a row stops the run.
      batch_norm_group: images that BatchNorm normalizes together, such as 32; None: the whole batch, over all devices.
    """

    epochs: float = 10.0
    steps: int | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    ema_warmup: bool = False
    evaluate_every: float = 1.0
    patience: int | None = None
    log_every: int = 10
    save_every: int | None = None
    remat: str | None = None
    scan: bool = False
    batch_norm_group: int | None = None
    not_finite: str = "stop"

    def __post_init__(self) -> None:
        for name in ("epochs", "evaluate_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"train.{name} is a number above 0, got {getattr(self, name)}")
        if self.remat not in (None, *REMAT):
            raise unknown_name_error("train.remat", str(self.remat), REMAT)
        if self.not_finite not in ("stop", "skip"):
            raise unknown_name_error("train.not_finite", str(self.not_finite), ("stop", "skip"))
        for name in ("steps", "accumulate", "patience", "log_every", "save_every", "batch_norm_group"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"train.{name} is 1 or more, got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"train.ema_decay is between 0 and 1, such as 0.9998, or None; got {self.ema_decay}")


def _data_options(
    *,
    batch_size: int = 64,
    eval_batch_size: int | None = None,
    workers: int | None = None,
    memory_limit: float = 2.0,
    max_corrupt: int = 10,
) -> None:
    """The section ``data``.

    Args:
      batch_size: images per step, over all devices.
      eval_batch_size: in evaluation; None: the same.
      workers: processes that read and decode; None: one for each core, at most 16.
      memory_limit: gibibytes; smaller sets of equal pictures are decoded once and kept in memory.
      max_corrupt: damaged pictures that are named and skipped; one more is an error.
    """


def _schedule_options(*, warmup_epochs: float | None = None) -> None:
    """What the section ``schedule`` has beside `make_schedule`'s arguments.

    Args:
      warmup_epochs: length of the warm-up in epochs, instead of ``warmup_steps``.
    """


def _preprocess_options(
    *,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> None:
    """The section ``preprocess``, the evaluation transform. None: as the weight tag says; without weights ImageNet's
    mean and std, bicubic, and a crop of 0.875 (small pictures that are all alike are never cropped).

    Args:
      crop_pct: the share of the resized picture's side that the crop keeps.
      crop_mode: "center", "squash" or "border".
      interpolation: Pillow's filter, such as "bicubic".
      mean: of the pictures in [0, 1], by channel; also used in training.
      std: likewise.
    """


def _sharding_options(*, zero1: bool = False, min_size: int = 2**16) -> None:
    """The section ``sharding``: what the axes of the mesh leave open.

    Args:
      zero1: split the optimizer's moments and the moving average over mesh.data, too (ZeRO-1).
      min_size: arrays with fewer elements are not split.
    """


# Section of the config -> the functions that it is splatted into, and the arguments that `train` gives itself.
SECTIONS: dict[str, tuple[tuple[Callable[..., Any], ...], set[str]]] = {
    "data": ((_data_options,), set()),
    "preprocess": ((_preprocess_options,), set()),
    "model": ((create_model,), {"num_classes", "in_channels", "seed", "features_only", "out_indices"}),
    "lora": ((partial.add_lora,), {"model", "rngs"}),
    "augment": (
        (on_device.augment_batch,),
        {"batch", "seed", "step", "num_classes", "image_size", "mean", "std", "label_smoothing"},
    ),
    "loss": ((make_loss,), set()),
    "optimizer": ((optim.create_optimizer,), {"model"}),
    "schedule": ((make_schedule, _schedule_options), {"steps", "learning_rate"}),
    "train": ((Loop,), set()),
    "sharding": ((_sharding_options,), set()),
    "checkpoint": ((Checkpoints,), {"workdir", "config", "log", "read_only"}),
}


METRICS = ("top1", "top5", "loss", "calibration_error")


# What may change between a run and its continuation.
MAY_DIFFER = (
    "checkpoint", "source.data_dir", "data.workers", "data.max_corrupt", "data.eval_batch_size", "train.log_every",
    "train.save_every",
    "train.remat", "train.scan", "train.not_finite", "mesh", "sharding",
)  # fmt: skip


def complete(config: Mapping[str, Any]) -> ConfigDict:
    """Returns `config` with every key that a section's functions take, at their defaults.

    Raises:
      UserError: a section or key that nothing takes; the message names the nearest.
    """
    given = ConfigDict(config)
    if not isinstance(given.get("seed", 0), int) or not 0 <= given.get("seed", 0) < 2**31:
        raise UserError(f"config.seed is a whole number, 0 or more and below 2**31; got {given.seed!r}")
    _check_mesh(given.get("mesh", {"data": -1}))
    full = ConfigDict({"seed": given.get("seed", 0), "mesh": ConfigDict(given.get("mesh", {"data": -1}))})
    for name in given:
        if name not in {"seed", "mesh", "source", *SECTIONS}:
            raise unknown_name_error("section of the config", name, {"seed", "mesh", "source", *SECTIONS})
    if "source" not in given or "name" not in given.source:
        raise UserError("the config needs source.name: one of " + ", ".join(source.SOURCES))
    if "model" not in given or "name" not in given.model:
        raise UserError("the config needs model.name, such as 'resnet50'")
    sections = {"source": ((source.source_function(given.source.name),), set()), **SECTIONS}
    for name, (functions, ours) in sections.items():
        parameters: dict[str, inspect.Parameter] = {}
        for function in functions:
            parameters |= _options(function, ours)
        section = ConfigDict()
        if name == "source":
            section.name = given.source.name
        for key, parameter in parameters.items():
            _set_default(section, key, parameter)
        if name == "lora":
            section.rank = 0  # off
        if name == "model":  # the architecture's own options: None is what its row says
            architecture = catalog.lookup(given.model.name).architecture
            # A module class is called through NNX's metaclass, whose own signature says nothing.
            build = cast(Any, registry.variant(architecture).build)
            own = _options(build.__init__, {"self", "rngs", *build.table_only, *section, *sections[name][1]})
            for key, parameter in own.items():
                simple = parameter.annotation if parameter.annotation in (int, float, str, bool) else object
                section[key] = config_dict.placeholder(simple)
        for key, value in given.get(name, {}).items():
            if key in sections[name][1]:
                raise UserError(f"config.{name}.{key} cannot be set: it follows from the data, or from config.seed")
            if key not in section:
                if name == "model":  # options of the architecture's own class are checked when it is built
                    section[key] = value
                    continue
                raise unknown_name_error(f"key of config.{name} ({functions[0].__name__.strip('_')})", key, section)
            kind = section.get_type(key)
            if kind is float and type(value) is int:
                value = float(value)  # a file's `epochs = 10` must not make 0.5 an error on the command line
            if kind in (int, float, bool) and not isinstance(value, kind | None):
                raise UserError(f"config.{name}.{key} is of the type {kind.__name__}, got {value!r}")
            with section.ignore_type():
                section[key] = value
        full[name] = section
    return full


def explain_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns ``{"section.key": what it does}`` for a completed config, from the docstrings of its functions.

    >>> from jaxvision.main import load
    >>> explain_keys(load("configs/quickstart.py:vit"))["train.patience"]
    'stop after this many evaluations without a better top-1; None never stops early.'
    """
    texts = {"seed": "of everything random: weights, order, augmentation.",
             "source.name": f"where the pictures come from: {', '.join(source.SOURCES)}.",
             "mesh.data": "devices along the axis that batches are split over; -1 is what the others leave.",
             "mesh.fsdp": "devices that split batches, and parameters with all that belongs to them, too.",
             "mesh.tensor": "devices that share the work of a layer, on the same images."}  # fmt: skip
    sections = {"source": ((source.source_function(config["source"]["name"]),), set()), **SECTIONS}
    family: Callable[..., Any] = registry.variant(catalog.lookup(config["model"]["name"]).architecture).build
    for name, (functions, _) in sections.items():
        # A family's own options first: what `create_model` says of the common ones is meant for all.
        for function in (family, *functions) if name == "model" else functions:
            texts |= {f"{name}.{key}": text for key, text in argument_texts(function).items()}
    return texts


def argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Returns the texts under ``Args:`` of a docstring in Google's form."""
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


def _options(function: Callable[..., Any], ours: set[str]) -> dict[str, inspect.Parameter]:
    hints = typing.get_type_hints(function if inspect.isfunction(function) else function.__init__)
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ours and parameter.kind is not parameter.VAR_KEYWORD
    }


def _set_default(section: ConfigDict, key: str, parameter: inspect.Parameter) -> None:
    """Sets a key to its default; None becomes a placeholder of the annotated type, so that a flag can be parsed."""
    if parameter.default not in (None, inspect.Parameter.empty):
        section[key] = parameter.default
        return
    kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
    simple = [kind for kind in kinds if kind in (int, float, str, bool)]
    section[key] = config_dict.placeholder(simple[0] if simple else object)


def _check_mesh(axes: Any) -> None:
    if not isinstance(axes, Mapping | ConfigDict) or not axes:
        raise UserError(f"config.mesh names axes and their sizes, such as {{'data': -1}}; got {axes!r}")
    for name, size in axes.items():
        if name not in AXES:
            raise unknown_name_error("axis of config.mesh", name, AXES)
        if type(size) is not int:
            raise UserError(f"config.mesh.{name} is a whole number, or -1 for what the others leave; got {size!r}")


def check_values(config: ConfigDict) -> None:
    """Raises for a key that must be given and is not, and for numbers that make no sense."""
    _check_mesh(config.mesh)
    sections = {"source": ((source.source_function(config.source.name),), set()), **SECTIONS}
    for name, (functions, ours) in sections.items():
        for function in functions:
            for key, parameter in _options(function, ours).items():
                if parameter.default is parameter.empty and config[name].get(key) is None:
                    raise UserError(f"the config needs {name}.{key}: --config.{name}.{key}=... or a line in the file")
    least: dict[str, float] = {
        "optimizer.weight_decay": 0, "data.max_corrupt": 0, "data.memory_limit": 0, "data.workers": 0,
        "model.image_size": 1, "data.eval_batch_size": 1,
    }  # fmt: skip
    for name, smallest in least.items():
        section, key = name.split(".")
        value = config[section].get(key)
        if value is not None and not value >= smallest:
            raise UserError(f"{name} is {smallest} or more, got {value}")
    if not 0 < config.optimizer.learning_rate < math.inf:
        raise UserError(f"optimizer.learning_rate is a number above 0, got {config.optimizer.learning_rate}")
    for key in ("mean", "std"):
        value = config.preprocess[key]
        if value is not None and (not isinstance(value, tuple | list) or (key == "std" and min(value) <= 0)):
            raise UserError(f"preprocess.{key} has one number for each channel, above 0 for std; got {value!r}")


def check_groups(loop: Loop, batch_size: int) -> None:
    images, group = batch_size // loop.accumulate, loop.batch_norm_group or 1
    if images % group:
        raise UserError(f"train.batch_norm_group={group} does not divide the {images} images of a (micro)batch")


def set_keys(section: ConfigDict) -> dict[str, Any]:
    """Returns the keys of a section that have a value: None means that the function's own default holds."""
    return {key: value for key, value in section.items() if value is not None}
