"""A model with its classes and its transform, and the folder in which timm and jaxvision both read it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from PIL.Image import Image

from jaxvision.augment import host, on_device
from jaxvision.augment.preprocess import Preprocess
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers import sizes
from jaxvision.weights import catalog, files, timm
from jaxvision.weights.timm_names import ONLY_AT_LOADING, OURS, theirs, timm_arguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """A model, the names of its classes and the transform that its pictures need.

    Raises:
      UserError: another number of names than the model has classes.
    """

    model: Model
    classes: tuple[str, ...]
    preprocess: Preprocess

    def __post_init__(self) -> None:
        if len(self.classes) != self.model.num_classes:
            raise UserError(f"the model has {self.model.num_classes} classes, but {len(self.classes)} have names")

    def images(self, pictures: Sequence[str | Path | Image]) -> jax.Array:
        """Returns what the model takes: [b, image_size, image_size, c], transformed as in evaluation and normalized.

        Args:
          pictures: files, or pictures of Pillow's; or a single one.

        Raises:
          UserError: a file is not there, or is no picture; or there is none at all.

        Example:
          >>> from PIL import Image
          >>> model = create_model("test_vit", num_classes=2, image_size=32, patch_size=8)
          >>> classifier = Classifier(model, ("cat", "dog"), Preprocess(image_size=32))
          >>> probabilities = jax.nn.softmax(classifier.model(classifier.images([Image.new("RGB", (60, 40))])))
          >>> probabilities.shape
          (1, 2)
        """
        if isinstance(pictures, str | Path | Image):
            pictures = [pictures]
        if not len(pictures):
            raise UserError("there is no picture to transform")
        pixels = np.stack([self.pixels(picture) for picture in pictures])
        return on_device.normalize(pixels, self.preprocess.mean, self.preprocess.std)

    def pixels(self, picture: str | Path | Image, *, times: int = 1) -> np.ndarray:
        """Returns one picture as the model sees it before it is normalized, uint8 [image_size, image_size, c].

        Args:
          picture: a file, or a picture of Pillow's.
          times: the same part of it on so many times the pixels, to look at.
        """
        if isinstance(picture, str | Path):
            try:
                picture = host.decode(Path(picture).read_bytes())
            except OSError as e:
                raise UserError(f"{picture} cannot be read: {e}") from e
            except UserError as e:
                raise UserError(f"{picture}: {e}") from e
        if not isinstance(picture, Image):
            kind = type(picture).__name__
            raise UserError(
                f"a picture is a file or one of Pillow's (PIL.Image.fromarray(array) makes one); got {kind}"
            )
        height, width = _height_and_width(self.model, self.preprocess)
        if height != width:
            raise UserError(f"this model takes {height} x {width} pixels, and pictures are made square: give it arrays")
        if self.model.in_channels not in (1, 3):
            raise UserError(f"pictures have 3 channels, or 1; this model takes {self.model.in_channels}")
        picture = picture.convert("RGB")
        if self.model.in_channels == 1:
            picture = picture.convert("L")
        larger = replace(self.preprocess, image_size=times * self.preprocess.image_size)
        return host.eval_transform(picture, larger)


def save_classifier(folder: str | Path, classifier: Classifier) -> Path:
    """Writes ``model.safetensors`` and ``config.json`` in the form of timm's hub repositories; returns the folder.

    timm reads it (``timm.create_model("local-dir:FOLDER", pretrained=True)``), `load_classifier` reads it, and so
    does every command of `jaxvision` that takes ``--model FOLDER``. Options of the model that timm has no argument for
    are named in a warning: timm would compute something else, or refuse the file.

    Example:
      >>> import tempfile
      >>> model = create_model("test_vit", num_classes=2, image_size=32, patch_size=8)
      >>> folder = save_classifier(tempfile.mkdtemp(), Classifier(model, ("cat", "dog"), Preprocess(image_size=32)))
      >>> load_classifier(folder).classes
      ('cat', 'dog')
    """
    folder = Path(folder)
    model, preprocess, names = classifier.model, classifier.preprocess, classifier.model.classifier_names
    config: dict[str, Any] = {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "label_names": list(classifier.classes),
        "model_args": timm_arguments(model),
        "jaxvision_options": dict(model.options),
        "pretrained_cfg": {
            "tag": "jaxvision",
            "num_classes": model.num_classes,
            "input_size": [model.in_channels, *_height_and_width(model, preprocess)],
            "crop_pct": preprocess.crop_pct,
            "crop_mode": preprocess.crop_mode,
            "interpolation": preprocess.interpolation,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "first_conv": model.first_conv,
            "classifier": names[0] if len(names) == 1 else list(names),
        },
    }
    untold = {name: value for name, value in model.options if name not in {*theirs(model), *ONLY_AT_LOADING}}
    if untold:
        said = ", ".join(f"{name}={value!r}" for name, value in untold.items())
        logger.warning("timm cannot be told of %s: in timm this file is not the same model; here it is", said)
    # The same mark in both files tells, should the process be killed between them, that they are not of one export.
    config[_MARK] = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:16]
    temporary = folder / f".config.json.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False).encode()
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        timm.save_timm(model, folder / "model.safetensors", metadata={_MARK: config[_MARK]})
        temporary.replace(folder / "config.json")
    except UnicodeEncodeError as e:
        name = next(name for name in classifier.classes if e.object[e.start] in name)
        raise UserError(f"the name of a class is not UTF-8: {name!r}") from e
    except OSError as e:
        raise UserError(f"cannot write {folder / 'config.json'}: {e.strerror or e}") from e
    finally:
        with suppress(OSError):
            temporary.unlink()
    return folder


def load_classifier(source: str | Path, *, checkpoint_path: str | Path | None = None, **options: Any) -> Classifier:
    """Returns a classifier from a folder of `save_classifier`, a finished run's workdir, or a name.

    Args:
      source: a folder with ``config.json`` and ``model.safetensors``, a workdir that holds one as ``export``, or a
        name for `create_model`, whose weights come from the hub unless `checkpoint_path` is given.
      checkpoint_path: a safetensors file for a name.
      **options: further arguments of `create_model`.

    Raises:
      UserError: no such folder or model, a folder whose run has not finished, or a number of classes that the weights
        do not have: a classifier's head is never an untrained one.
    """
    if not isinstance(source, str | Path):
        raise UserError(f"a classifier is asked for by a folder or a name; got {source!r}")
    if options.get("features_only"):
        raise UserError(
            "a classifier has a head: for maps of features give the weights' folder to create_model, "
            "create_model(name, checkpoint_path=folder, features_only=True)"
        )
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_file() or "/" in str(source):
            raise UserError(
                f"{source} is not a folder with config.json; for a weight file give the model's name and --checkpoint"
            )
        entry = catalog.lookup(str(source))
        if own := exported(checkpoint_path, entry.architecture):  # the file knows its own classes and transform
            if options.get("num_classes") == own.num_classes:
                del options["num_classes"]
            return load_classifier(Path(cast(str, checkpoint_path)).parent, **options)
        _check_head(entry, checkpoint_path, options.get("num_classes"))
        preprocess = entry.preprocess
        if options.get("image_size"):
            preprocess = replace(preprocess, image_size=options["image_size"])
        model: Model = create_model(str(source), checkpoint_path is None, checkpoint_path=checkpoint_path, **options)
        return Classifier(model, catalog.class_names(model.num_classes), _gray(preprocess, model.in_channels))
    folder = folder if (folder / "config.json").is_file() and _is_export(folder) else folder / "export"
    if not _is_export(folder):
        raise UserError(f"{source} holds no finished model (export/config.json); let the run end, then try again")
    if "num_classes" in options:
        raise UserError(f"{source} has its own classes; another num_classes is for a model's name")
    found = _read_export(folder)
    size = options.get("image_size") or found.preprocess.image_size
    preprocess = replace(found.preprocess, image_size=size)
    entry = catalog.lookup(found.architecture)
    arguments = dict(found.options)
    registry.check_options(f"option in {folder / 'config.json'}", arguments, registry.options(entry.architecture))
    arguments |= {ours: found.model_args[key] for key, ours in OURS.items() if key in found.model_args}
    if entry.activation is not None:
        arguments.setdefault("activation", "gelu")  # not said is the architecture's own, not its weights'
    path = checkpoint_path or folder / "model.safetensors"
    if checkpoint_path is None:
        with files.open_tensors(path) as file:
            mark = file.metadata.get(_MARK)
        if None not in (mark, found.mark) and mark != found.mark:
            raise UserError(
                f"{folder}: config.json and model.safetensors are of two exports, the later of which was not finished; "
                f"export again"
            )
    _check_head(entry, path, found.num_classes)
    # A ViT keeps its own size, which may be no square; a convnet notes that of its pictures.
    arguments = {"image_size": size, **arguments, "num_classes": found.num_classes, **options}
    model = cast(Model, create_model(found.architecture, checkpoint_path=path, **arguments))
    return Classifier(model, found.classes, _gray(preprocess, model.in_channels))


class Export(NamedTuple):
    """What ``config.json`` of `save_classifier` says."""

    architecture: str
    num_classes: int
    classes: tuple[str, ...]
    preprocess: Preprocess
    mark: str | None
    options: dict[str, Any]
    model_args: dict[str, Any]


def exported(checkpoint_path: str | Path | None, architecture: str) -> Export | None:
    """Returns what `save_classifier` wrote beside a weight file for this architecture; None beside any other."""
    path = Path(checkpoint_path or "")
    if path.name != "model.safetensors" or not _is_export(path.parent):
        return None
    try:
        config = json.loads((path.parent / "config.json").read_text())
        ours = config["architecture"] == architecture and config["pretrained_cfg"]["tag"] == "jaxvision"
    except (ValueError, LookupError, TypeError, OSError):
        return None  # somebody else's
    return _read_export(path.parent) if ours else None


def _read_export(folder: Path) -> Export:
    try:
        config = json.loads((folder / "config.json").read_text())
        cfg = config["pretrained_cfg"]
        transform = {key: cfg[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std")}
        return Export(
            architecture=config["architecture"],
            num_classes=config["num_classes"],
            classes=tuple(config["label_names"]),
            preprocess=Preprocess(image_size=cfg["input_size"][-1], **transform),
            mark=config.get(_MARK),
            options=dict(config.get("jaxvision_options", {})),
            model_args=dict(config.get("model_args", {})),
        )
    except (ValueError, LookupError, TypeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{folder / 'config.json'} is not one that save_classifier writes ({e!r})") from e


def _check_head(entry: catalog.Entry, path: str | Path | None, num_classes: int | None) -> None:
    """Raises unless the weights have a head of `num_classes`, if that is said; a fresh one could tell nothing."""
    published = entry.num_classes if path is None else timm.num_classes(path, entry.classifier)
    if num_classes not in (None, 0, published):
        raise UserError(
            f"{path or entry.name} has {f'a head of {published} classes' if published else 'no head'}, not one of "
            f"{num_classes}: another head is untrained, and trained by python -m jaxvision.main"
        )


def _gray(preprocess: Preprocess, in_channels: int) -> Preprocess:
    """Returns the transform for pictures of one channel, where it was of three."""
    if in_channels != 1 or len(preprocess.mean) == 1:
        return preprocess
    mean, std = (sum(values) / len(values) for values in (preprocess.mean, preprocess.std))
    return replace(preprocess, mean=(mean,), std=(std,))


_MARK = "jaxvision.export"


def _height_and_width(model: Model, preprocess: Preprocess) -> tuple[int, int]:
    size = model.image_size if model.family == "vit" else preprocess.image_size
    return sizes.pair("image_size", size)


def _is_export(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
