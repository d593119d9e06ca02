"""Folders in the format of timm's hub repositories: ``config.json`` beside the weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
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
    if not (path.is_file() and any(file.name.endswith(files.SUFFIXES) for file in folder.iterdir())):
        return None
    return read_config(path)


def read_config(path: Path) -> Export:
    """Returns the contents of a ``config.json``.

    Raises:
      UserError: it is damaged, or not in timm's format.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise _damaged_config_error(path, e) from e
    return _parse(path, config)


def find_export(checkpoint_path: str | Path | None, architecture: str) -> Export | None:
    """Returns the export that a weight file belongs to, if it is one of this architecture; otherwise None.

    Args:
      checkpoint_path: the weight file, its folder or the workdir of its run, as for `create_model`, or None.
      architecture: name of the model, without a tag.
    """
    if checkpoint_path is None:
        return None
    path = files.weights_folder(Path(checkpoint_path).expanduser())
    path = path / "model.safetensors" if path.is_dir() else path
    if path.name != "model.safetensors" or not path.is_file():
        return None
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        is_ours = config["architecture"] == architecture and config["pretrained_cfg"]["tag"] == "jaxvision"
    except (ValueError, LookupError, TypeError, OSError):
        return None  # no config.json, or another program's
    return _parse(path.parent / "config.json", config) if is_ours else None


def _parse(path: Path, config: Any) -> Export:
    """Returns the contents of timm's ``config.json``; in its older form all keys are at the top."""
    if isinstance(config, Mapping) and "architecture" not in config and "architectures" in config:
        raise UserError(
            f"{path}: got a model of transformers, {config['architectures']}, expected timm's format. Use timm's "
            "weights of this architecture."
        )
    try:
        cfg = config.get("pretrained_cfg", config)
        num_classes = int(config.get("num_classes", cfg.get("num_classes", 1000)))
        size = cfg.get("input_size") or (3, 224, 224)
        # timm's defaults apply where the file has no value.
        transform = {key: cfg[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std") if cfg.get(key)}
        names = next((row[key] for key in ("label_names", "labels") for row in (config, cfg) if row.get(key)), None)
        return Export(
            folder=path.parent,
            architecture=str(config["architecture"]),
            tag=cfg.get("tag") or "",
            num_classes=num_classes,
            classes=_parse_names(names, num_classes),
            preprocess=Preprocess(image_size=size[-1], **transform),
            export_id=config.get(EXPORT_ID),
            options=dict(config.get("jaxvision_options", {})),
            model_args=dict(config.get("model_args") or {}),
            builder=config.get("jaxvision_builder"),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        if isinstance(e, UserError):
            raise UserError(f"{path}: {e}") from e
        raise _damaged_config_error(path, e) from e


def _parse_names(names: Any, num_classes: int) -> tuple[str, ...]:
    """Returns the names of all classes. timm writes a list, or an object from the number of a class to its name."""
    if not names:
        return imagenet.class_names(num_classes)
    if not isinstance(names, Mapping):
        return tuple(str(name) for name in names)
    by_number = {int(number): str(name) for number, name in names.items()}
    beyond = [number for number in by_number if not 0 <= number < num_classes]
    if beyond:
        raise UserError(f"label_names: got a name for the class {beyond[0]}, expected numbers below {num_classes}.")
    return tuple(by_number.get(number, f"class {number}") for number in range(num_classes))


def _damaged_config_error(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a config.json of save_classifier or timm ({error!r}). Export the model again.")
