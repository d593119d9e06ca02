"""A model with its classes and its transform, and the folder format in which timm and jaxvision read it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL.Image import Image

from jaxvision.augment import host, on_device
from jaxvision.augment.decoding import decode, to_rgb
from jaxvision.augment.preprocess import Preprocess
from jaxvision.create import create_model
from jaxvision.disk import replaced, sync
from jaxvision.errors import UserError, count, printable_line, unknown_name_error
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers import sizes
from jaxvision.train.loss import PROBABILITIES
from jaxvision.train.partial import parameter_counts
from jaxvision.weights import catalog, files, foreign, imagenet, timm
from jaxvision.weights.folder import EXPORT_ID, Export, find_export, read_export
from jaxvision.weights.prefix import without_prefix
from jaxvision.weights.weight_file import WeightFile, first_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Classifier:
    """A model, the names of its classes, and the transform of its images.

    Attributes:
      model: the model.
      classes: one name for each class.
      preprocess: the evaluation transform.
      probabilities: how logits become probabilities: ``"softmax"``, or ``"sigmoid"`` for a model that was trained with
        the sigmoid loss. An export records it.

    Raises:
      UserError: the number of names is not the number of classes, or `probabilities` is unknown.

    Example:
      >>> model = create_model("test_vit", num_classes=2, image_size=32, patch_size=8)
      >>> Classifier(model, ("cat", "dog"), Preprocess(image_size=32)).classes
      ('cat', 'dog')
      >>> Classifier(model, ("cat", "dog"), Preprocess(image_size=32))
      Classifier(test_vit: 264,130 parameters, 32 x 32 pixels, 3 channels, 2 classes: cat, dog)
    """

    model: Model
    classes: tuple[str, ...]
    preprocess: Preprocess
    probabilities: str = "softmax"

    def __post_init__(self) -> None:
        if self.probabilities not in PROBABILITIES:
            raise unknown_name_error("probabilities", self.probabilities, PROBABILITIES)
        if len(self.classes) != self.model.num_classes:
            raise UserError(f"classes: got {len(self.classes)} names, expected the model's {self.model.num_classes}.")

    def __repr__(self) -> str:  # that of the model has a line for each of its arrays
        height, width = _height_and_width(self.model, self.preprocess)
        parts = [
            f"{parameter_counts(nnx.state(self.model))[0]:,} parameters",
            f"{height} x {width} pixels",
            count(self.model.in_channels, "channel"),
            f"{count(len(self.classes), 'class', 'classes')}: {first_names(self.classes)}"
            if self.classes
            else "no head",
        ]
        return printable_line(f"Classifier({self.model.architecture}: {', '.join(parts)})")

    def to_probabilities(self, logits: jax.Array) -> jax.Array:
        """Returns the probabilities of the classes: float32 [b, num_classes].

        Those of a softmax sum to 1. Each probability of a sigmoid stands by itself, because such a model may find
        several classes in an image, or none.

        Args:
          logits: float [b, num_classes], from the model.
        """
        return PROBABILITIES[self.probabilities](logits.astype(jnp.float32))

    def images(self, sources: str | Path | Image | Sequence[str | Path | Image]) -> jax.Array:
        """Returns the input of the model: float [b, image_size, image_size, c], transformed and normalized.

        Args:
          sources: image files or Pillow images, or a single one.

        Raises:
          UserError: a file does not exist or is not an image, or the list is empty.

        Example:
          >>> from PIL import Image
          >>> model = create_model("test_vit", num_classes=2, image_size=32, patch_size=8)
          >>> classifier = Classifier(model, ("cat", "dog"), Preprocess(image_size=32))
          >>> logits = classifier.model(classifier.images([Image.new("RGB", (60, 40))]))
          >>> classifier.to_probabilities(logits).shape
          (1, 2)
        """
        if isinstance(sources, str | Path | Image):
            sources = [sources]
        if not len(sources):
            raise UserError("images: got an empty list, expected at least one image.")
        pixels = np.stack([self.pixels(source) for source in sources])
        return on_device.normalize(pixels, self.preprocess.mean, self.preprocess.std)

    def pixels(self, source: str | Path | Image, *, times: int = 1) -> np.ndarray:
        """Returns an image as the model sees it, before normalization: uint8 [image_size, image_size, c].

        Args:
          source: an image file or a Pillow image.
          times: factor on the resolution, for display. Default: 1.

        Raises:
          UserError: the file does not exist or is not an image, or the model's images are not square or do not have 1
            or 3 channels.
        """
        image = open_image(source)
        height, width = _height_and_width(self.model, self.preprocess)
        if height != width:
            raise UserError(
                f"images: this model takes {height} x {width} pixels, but the transform makes square images. "
                "Call the model with an array [b, h, w, c]."
            )
        if self.model.in_channels not in (1, 3):
            raise UserError(
                f"images: this model takes {self.model.in_channels} channels, but image files have 3 or 1. "
                "Call the model with an array [b, h, w, c]."
            )
        image = to_rgb(image)
        if self.model.in_channels == 1:
            image = image.convert("L")
        return host.eval_transform(image, replace(self.preprocess, image_size=times * self.preprocess.image_size))


def open_image(source: str | Path | Image) -> Image:
    """Returns a decoded image.

    Args:
      source: an image file, or a Pillow image, which is returned.

    Raises:
      UserError: the file does not exist or is not an image.
    """
    if isinstance(source, Image):
        return source
    if not isinstance(source, str | Path):
        raise UserError(
            f"images: got {type(source).__name__}, expected a file name or a Pillow image. "
            "Convert bytes with PIL.Image.open(io.BytesIO(data)), an array with PIL.Image.fromarray(array)."
        )
    try:
        return decode(Path(source).read_bytes())
    except (OSError, MemoryError) as e:
        raise UserError(f"cannot read {source}: {str(e) or 'not enough memory'}") from e
    except UserError as e:
        raise UserError(f"{source}: {e}") from e


def save_classifier(folder: str | Path, classifier: Classifier) -> Path:
    """Writes ``model.safetensors`` and ``config.json`` in the format of timm's hub repositories.

    The folder is read by timm (``timm.create_model("local-dir:FOLDER", pretrained=True)``), by `load_classifier`, and
    by every command of `jaxvision` with ``--model FOLDER``. A warning names options of the model that timm has no
    argument for. For a model of your own, ``config.json`` notes the import path of the class or function that builds
    it; timm cannot read that folder.

    Args:
      folder: is created. An earlier export in it is replaced.
      classifier: the model, its classes and its transform.

    Returns:
      The folder.

    Raises:
      UserError: a class name that is not valid UTF-8, or a file that cannot be written. An earlier export is unchanged.

    Example:
      >>> import tempfile
      >>> model = create_model("test_vit", num_classes=2, image_size=32, patch_size=8)
      >>> folder = save_classifier(tempfile.mkdtemp(), Classifier(model, ("cat", "dog"), Preprocess(image_size=32)))
      >>> load_classifier(folder).classes
      ('cat', 'dog')
    """
    folder = Path(folder)
    try:
        config = _export_config(classifier)
        text = json.dumps(config, indent=2, ensure_ascii=False).encode()
    except TypeError as e:
        raise UserError(
            f"cannot save the options of {classifier.model.architecture}: {e}. Use numbers and texts."
        ) from e
    except UnicodeEncodeError as e:
        name = next(name for name in classifier.classes if e.object[e.start] in name)
        raise UserError(f"classes: the name {name!r} is not valid UTF-8. Rename the class.") from e
    try:
        # config.json is complete on the disk before the weights are replaced, and replaced after them. If the process
        # is killed in between, the identifiers in the two files differ.
        with replaced(folder / "config.json") as temporary:
            temporary.write_bytes(text)
            sync(temporary)
            timm.save_timm(classifier.model, folder / "model.safetensors", metadata={EXPORT_ID: config[EXPORT_ID]})
    except OSError as e:
        raise UserError(f"cannot write {folder / 'config.json'}: {e.strerror or e}") from e
    return folder


def _export_config(classifier: Classifier) -> dict[str, Any]:
    model, names = classifier.model, classifier.model.classifier_names
    preprocess = classifier.preprocess.for_channels(model.in_channels)
    row = registry.variant(model.architecture)
    config: dict[str, Any] = {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "label_names": list(classifier.classes),
        "model_args": timm.timm_arguments(model),
        "jaxvision_options": dict(model.options),
        "jaxvision_probabilities": classifier.probabilities,
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
    if row.module is not None:
        config["jaxvision_builder"] = f"{row.module}:{getattr(row.build, '__qualname__', '')}"
        if row.module == "__main__":
            logger.warning(
                "%s is defined in a script or notebook, so only a program that registers it first can load the export; "
                "move it to a module",
                model.architecture,
            )
    elif unknown := timm.unknown_to_timm(model):
        options = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        logger.warning(
            "timm has no argument for %s and will build another model; jaxvision will build this one", options
        )
    return config | {EXPORT_ID: hashlib.sha256(json.dumps(config).encode()).hexdigest()[:16]}


def load_classifier(source: str | Path, *, checkpoint_path: str | Path | None = None, **options: Any) -> Classifier:
    """Returns a classifier from a folder of `save_classifier` or timm, a finished run's workdir, or a model's name.

    Args:
      source: a folder with ``config.json`` and weights, a workdir with such a folder named ``export``, or a name for
        `create_model`, whose weights come from the hub unless `checkpoint_path` is given. The folder may have timm's
        prefix ``local-dir:``. The folder of a model from outside jaxvision names the module that builds it, which is
        imported.
      checkpoint_path: other weights, from this file or the ``model.safetensors`` in this folder. If `source` is a name
        and the weights are those of an export, its classes and its transform are used.
      **options: further arguments of `create_model`.

    Raises:
      UserError: no such folder or model, a run that has not finished, a model whose module cannot be imported, or
        weights without a head of `num_classes` (the head would be untrained).

    Example:
      >>> import tempfile
      >>> model = create_model("test_resnet", num_classes=2, image_size=32)
      >>> folder = save_classifier(tempfile.mkdtemp(), Classifier(model, ("cat", "dog"), Preprocess(image_size=32)))
      >>> load_classifier(folder).model.num_classes
      2
    """
    if not isinstance(source, str | Path):
        raise UserError(f"classifier: got {source!r}, expected a folder or a model's name.")
    if options.get("features_only"):
        raise UserError(
            "features_only: a classifier has a head. For feature maps, pass the folder to create_model: "
            "create_model(name, checkpoint_path=folder, features_only=True)."
        )
    if str(source).startswith("local-dir:"):
        source = str(source).removeprefix("local-dir:")
        if not os.path.isdir(Path(source).expanduser()):
            raise UserError(f"classifier: got local-dir:{source}, expected an existing folder.")
    folder = Path(source).expanduser()
    if os.path.isdir(folder):  # unlike Path.is_dir, it does not raise for a name that no file can have
        export = read_export(folder) or read_export(folder / "export")
        if export is None:
            raise _no_export_error(folder, str(source))
        return _load_export(export, checkpoint_path, options)
    if os.path.isfile(folder) or ("/" in str(source) and not catalog.is_on_hub(str(source))):
        raise UserError(
            f"{source} is not a folder with config.json. For a weight file, pass the model's name and the file as "
            "checkpoint_path (on the command line: --checkpoint)."
        )
    entry = catalog.lookup(str(source), where="model")
    # The export that a file belongs to has the classes and the transform of its weights.
    export = find_export(checkpoint_path, entry.architecture)
    if export is not None:
        if options.get("num_classes") == export.num_classes:
            del options["num_classes"]
        return _load_export(export, None, options)
    return _load_by_name(str(source), entry, checkpoint_path, options)


def _no_export_error(folder: Path, source: str) -> UserError:
    if files.is_unfinished_run(folder):
        return files.unfinished_run_error(folder)
    return UserError(
        f"{source}: found no export/config.json, expected the workdir of a finished run or a folder with config.json "
        "and weights."
    )


def _load_by_name(
    name: str, entry: catalog.Entry, checkpoint_path: str | Path | None, options: Mapping[str, Any]
) -> Classifier:
    preprocess = entry.preprocess
    if options.get("image_size"):
        preprocess = replace(preprocess, image_size=options["image_size"])
    num_classes = options.get("num_classes")
    if checkpoint_path is None:
        if num_classes not in (None, 0, entry.num_classes):
            raise _untrained_head_error(entry.name, entry.num_classes, num_classes)
        model: Model = create_model(name, True, **options)
    else:
        file = files.open_weights(checkpoint_path)
        model = create_model(name, checkpoint_path=file, **options)
        _check_head(model, file, num_classes)
        foreign.log_normalization(file, preprocess.mean)
    classes = entry.classes if len(entry.classes) == model.num_classes else imagenet.class_names(model.num_classes)
    return Classifier(model, classes, preprocess.for_channels(model.in_channels), entry.probabilities)


def _load_export(export: Export, checkpoint_path: str | Path | None, options: Mapping[str, Any]) -> Classifier:
    if "num_classes" in options:
        raise UserError(
            f"num_classes: {export.folder} has its own {export.num_classes} classes. Remove num_classes, or pass a "
            "model's name instead of the folder."
        )
    export.register()
    arguments = catalog.export_entry(export).options
    file = files.open_weights(checkpoint_path or export.folder)
    ids = {file.metadata.get(EXPORT_ID), export.export_id}
    if checkpoint_path is None and None not in ids and len(ids) == 2:
        raise UserError(
            f"{export.folder}: config.json and model.safetensors belong to different exports, because the later one "
            "was interrupted. Export again."
        )
    size = options.get("image_size") or export.preprocess.image_size
    preprocess = replace(export.preprocess, image_size=size)
    # model_args contain the size of a model that has a fixed one; for others it is that of the transform.
    arguments = {"image_size": size, **arguments, "num_classes": export.num_classes, **options}
    model = cast(Model, create_model(export.architecture, checkpoint_path=file, **arguments))
    _check_head(model, file, export.num_classes)
    return Classifier(model, export.classes, preprocess.for_channels(model.in_channels), export.probabilities)


def _check_head(model: Model, file: WeightFile, num_classes: int | None) -> None:
    """Raises if the head of `num_classes` is untrained, because the file has another one or none."""
    found = timm.num_classes(without_prefix(file, model.first_conv), model.classifier_names)
    if num_classes not in (None, 0, found):
        raise _untrained_head_error(file.path, found, num_classes)


def _untrained_head_error(weights: Any, found: int, num_classes: int | None) -> UserError:
    head = f"a head of {found} classes" if found else "no head"
    return UserError(
        f"num_classes: got {num_classes}, but {weights} has {head}. Leave num_classes out, or train another head by "
        "python -m jaxvision.main."
    )


def _height_and_width(model: Model, preprocess: Preprocess) -> tuple[int, int]:
    size = model.image_size if model.has_fixed_image_size else preprocess.image_size
    return sizes.pair("image_size", size)
