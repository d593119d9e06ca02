"""Folders in the format of timm's hub repositories: ``config.json`` beside the weights."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxvision import extend
from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights import files, imagenet
from jaxvision.weights.timm.names import OURS

logger = logging.getLogger(__name__)

# This key of config.json and of the weights' metadata holds the identifier of an export, the same in both files.
EXPORT_ID = "jaxvision.export"
# timm's arguments that have no effect on a model that only predicts.
_WITHOUT_EFFECT = ("num_classes", "pretrained", "exportable", "scriptable")
# Above every number of classes or pixels. A list of as many names fits in memory.
_MAX_COUNT = 10**7
_RATES = ("drop_rate", "drop_path_rate", "drop_block_rate")


class Export(NamedTuple):
    """The contents of ``config.json`` in a folder of `save_classifier`, of timm or of the hub.

    Attributes:
      folder: that contains it.
      architecture: name of the model, without a tag.
      tag: name of the weights; ``"jaxvision"`` for a folder of `save_classifier`, ``""`` if there is none.
      num_classes: number of classes.
      classes: their names. Where the file has none, those of ImageNet-1k for 1000 classes, otherwise numbers.
      preprocess: the evaluation transform.
      export_id: equal to the one in the weights' metadata if both files are of one export; None if there is none.
      options: options of the model.
      model_args: the same for timm, by timm's names.
      probabilities: ``"softmax"`` or ``"sigmoid"``, as for `jaxvision.classifier.Classifier`.
      builder: ``"package.module:function"`` for a model from outside jaxvision, otherwise None.
    """

    folder: Path
    architecture: str
    tag: str
    num_classes: int
    classes: tuple[str, ...]
    preprocess: Preprocess
    export_id: str | None
    options: dict[str, Any]
    model_args: dict[str, Any]
    probabilities: str
    builder: str | None

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the model, by our names. Logs those of timm's that have no counterpart.

        Raises:
          UserError: an option that the model does not take.
        """
        valid, expected = registry.options(self.architecture), f"an option of {self.architecture}"
        registry.check_options(str(self.folder / "config.json"), self.options, valid, expected=expected)
        lost = [
            key
            for key in self.model_args
            if key not in OURS and key not in _WITHOUT_EFFECT and not key.endswith(_RATES)
        ]
        if lost:
            logger.warning("%s: model_args that are not used: %s", self.folder / "config.json", ", ".join(lost))
        return self.options | {ours: self.model_args[key] for key, ours in OURS.items() if key in self.model_args}

    def register(self) -> None:
        """Imports the module of a model from outside jaxvision, unless the model is registered already.

        Raises:
          UserError: the module cannot be imported.
        """
        if self.builder is None or self.architecture in registry.architectures():
            return
        try:
            build = extend.resolve("model", self.builder, {}, expected="a model")
            if self.architecture not in registry.architectures():
                registry.register_model(build, name=self.architecture)
        except UserError as e:
            raise UserError(
                f"{self.folder / 'config.json'}: cannot find the model {self.architecture!r}, which was built by "
                f"{self.builder!r} ({e}) Import the module that registers it first, or put it on PYTHONPATH."
            ) from e


def read_export(folder: Path) -> Export | None:
    """Returns the contents of a folder with ``config.json`` and weights; None if one of them is missing.

    Raises:
      UserError: ``config.json`` is damaged, or not in timm's format.
    """
    path = folder / "config.json"
    if not (os.path.isfile(path) and any(file.name.endswith(files.SUFFIXES) for file in folder.iterdir())):
        return None
    return read_config(path)


def read_config(path: Path) -> Export:
    """Returns the contents of a ``config.json``.

    Raises:
      UserError: it is damaged, or not in timm's format.
    """
    return _parse(path, _read_json(path))


def check_export(folder: Path) -> None:
    """Checks that an export is complete: both files exist, belong together and are not truncated. Reads no tensor.

    Raises:
      UserError: a file is missing, truncated or belongs to another export.
    """
    export, file = read_config(folder / "config.json"), files.open_weights(folder / "model.safetensors")
    if export.export_id != file.metadata.get(EXPORT_ID):
        raise UserError(f"{folder}: config.json and model.safetensors belong to different exports.")


def find_export(checkpoint_path: str | Path | None, architecture: str) -> Export | None:
    """Returns the export that a weight file belongs to, if it is one of this architecture; otherwise None.

    Args:
      checkpoint_path: the weight file, its folder or the workdir of its run, as for `create_model`, or None.
      architecture: name of the model, without a tag.

    Raises:
      UserError: the ``config.json`` beside the file cannot be read, or it is damaged. A valid one of another program is
        not an error.
    """
    if checkpoint_path is None:
        return None
    path = files.weights_folder(checkpoint_path)
    path = path / "model.safetensors" if os.path.isdir(path) else path
    if path.name != "model.safetensors" or not os.path.isfile(path):
        return None
    if not os.path.isfile(path.parent / "config.json"):
        return None
    config = _read_json(path.parent / "config.json")
    if not _is_ours(config):
        return None
    export = _parse(path.parent / "config.json", config)
    return export if export.architecture == architecture else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}).") from e
    except (ValueError, RecursionError) as e:
        reason = f"got invalid JSON ({e}), expected a config.json of save_classifier or timm"
        raise _damaged_config_error(path, reason) from e


def _is_ours(config: Any) -> bool:
    """Returns whether `save_classifier` wrote the contents of a ``config.json``."""
    if not isinstance(config, Mapping):
        return False
    cfg = config.get("pretrained_cfg")
    return EXPORT_ID in config or (isinstance(cfg, Mapping) and cfg.get("tag") == "jaxvision")


def _parse(path: Path, config: Any) -> Export:
    """Returns the contents of timm's ``config.json``; in its older form all keys are at the top."""
    if isinstance(config, Mapping) and "architecture" not in config and "architectures" in config:
        raise UserError(
            f"{path}: got a model of transformers, {config['architectures']}, expected timm's format. Pass timm's "
            f"name of the architecture, and the folder as its checkpoint: create_model(NAME, checkpoint_path="
            f"{str(path.parent)!r}), or -m NAME --checkpoint {path.parent}"
        )
    if not isinstance(config, Mapping):
        raise _damaged_config_error(path, f"got {_shown(config)}, expected an object")
    try:
        cfg = _value(config, "pretrained_cfg", _OBJECT) or config
        architecture = _value(config, "architecture", _TEXT)
        if not architecture:
            raise UserError("architecture: got none, expected the name of a model.")
        num_classes = _value(config, "num_classes", _COUNT)
        if num_classes is None:
            num_classes = _value(cfg, "num_classes", _COUNT, default=1000)
        options = dict(_value(config, "jaxvision_options", _OBJECT, default={}))
        model_args = dict(_value(config, "model_args", _OBJECT, default={}))
        builder = _value(config, "jaxvision_builder", _TEXT)
        is_square = builder is None and not _has_other_sides(options.get("image_size", model_args.get("img_size")))
        return Export(
            folder=path.parent,
            architecture=architecture,
            tag=_value(cfg, "tag", _TEXT, default=""),
            num_classes=num_classes,
            classes=_parse_names(config, cfg, num_classes),
            preprocess=_parse_transform(cfg, model_args.get("in_chans"), is_square=is_square),
            export_id=_value(config, EXPORT_ID, _TEXT),
            options=options,
            model_args=model_args,
            probabilities=_value(config, "jaxvision_probabilities", _PROBABILITIES, default="softmax"),
            builder=builder,
        )
    except UserError as e:
        raise _damaged_config_error(path, str(e)) from e


class _Type(NamedTuple):
    """What the value of a key may be.

    Attributes:
      is_valid: returns whether a value is one.
      expected: the same in words, for messages.
    """

    is_valid: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # also for integers that no float can hold


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_list_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def _is_class_number(key: str) -> bool:
    return key.isdecimal() and len(key) <= len(str(_MAX_COUNT))


_TEXT = _Type(lambda value: isinstance(value, str), "a string")
_OBJECT = _Type(lambda value: isinstance(value, Mapping), "an object")
_NUMBER = _Type(_is_number, "a number")
_NUMBERS = _Type(_is_list_of(_is_number), "a list of numbers")
_COUNT = _Type(_is_count, f"a non-negative integer of at most {_MAX_COUNT:,}")
_SIZE = _Type(
    lambda value: _is_list_of(_is_count)(value) and len(value) == 3 and min(value) > 0,
    "[channels, height, width], such as [3, 224, 224]",
)
_NAMES = _Type(
    lambda value: (
        _is_list_of(_is_name)(value)
        or (isinstance(value, Mapping) and all(_is_class_number(key) and _is_name(name) for key, name in value.items()))
    ),
    "a list of the names of all classes, or an object from the number of a class to its name",
)
_PROBABILITIES = _Type(lambda value: value in ("softmax", "sigmoid"), "'softmax' or 'sigmoid'")


def _value(row: Mapping[str, Any], key: str, type_: _Type, default: Any = None) -> Any:
    """Returns the value of a key, or `default` if it is missing or null.

    Raises:
      UserError: it is not of this type.
    """
    value = row.get(key)
    if value is None:
        return default
    if not type_.is_valid(value):
        raise UserError(f"{key}: got {_shown(value)}, expected {type_.expected}.")
    return value


def _has_other_sides(image_size: Any) -> bool:
    """Returns whether the image size of a model, as its arguments state it, is not that of a square."""
    return isinstance(image_size, list) and len(set(map(str, image_size))) > 1


def _parse_transform(cfg: Mapping[str, Any], model_channels: Any, *, is_square: bool) -> Preprocess:
    """Returns the evaluation transform. timm's defaults apply where the file has no value.

    Args:
      cfg: that contains the transform.
      model_channels: number of channels in the model's arguments, which timm does not write to `cfg`; None if unknown.
      is_square: whether the model itself is not built for images that are not square.
    """
    size = _value(cfg, "input_size", _SIZE, default=[3, 224, 224])
    if is_square and size[1] != size[2]:
        raise UserError(
            f"input_size: got {_shown(size)}, expected equal height and width, because the transform makes square "
            "images and the arguments of the model state no other size."
        )
    types = {"crop_pct": _NUMBER, "crop_mode": _TEXT, "interpolation": _TEXT, "mean": _NUMBERS, "std": _NUMBERS}
    given = {key: _value(cfg, key, type_) for key, type_ in types.items()}
    preprocess = Preprocess(image_size=size[-1], **{key: value for key, value in given.items() if value is not None})
    # A gray model takes the mean of the colors' numbers, and several channels may share one number.
    if 1 not in (size[0], len(preprocess.mean)) and len(preprocess.mean) not in (size[0], model_channels):
        raise UserError(
            f"mean and std: got {len(preprocess.mean)} numbers each, expected {size[0]}, the channels of input_size."
        )
    return preprocess


def _parse_names(config: Mapping[str, Any], cfg: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Returns the names of all classes. timm writes a list, or an object from the number of a class to its name."""
    found = ((key, _value(row, key, _NAMES)) for key in ("label_names", "labels") for row in (config, cfg))
    key, names = next(((key, names) for key, names in found if names), ("", None))
    if names is None or not num_classes:
        return imagenet.class_names(num_classes)
    if not isinstance(names, Mapping):
        if len(names) != num_classes:
            raise UserError(f"{key}: got {len(names)} names, expected {num_classes}, the number of classes.")
        return tuple(str(name) for name in names)
    by_number = {int(number): str(name) for number, name in names.items()}
    if len(by_number) < len(names):
        raise UserError(f"{key}: got several names for a class, expected one. Write its number without leading zeros.")
    beyond = [number for number in by_number if number >= num_classes]
    if beyond:
        raise UserError(f"{key}: got a name for the class {beyond[0]}, expected numbers below {num_classes}.")
    return tuple(by_number.get(number, f"class {number}") for number in range(num_classes))


def _shown(value: Any) -> str:
    """Returns a value as a message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _damaged_config_error(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: {reason}{'' if reason.endswith(('.', '?')) else '.'} Fix the file, or export the model again."
    )
