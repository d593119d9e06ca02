"""From a name to a model that is ready to predict, and from a model to a folder that timm reads.

This is the one place where architectures (`models`), files (`weights`) and freezing (`train.partial`) meet.
"""

from __future__ import annotations

import hashlib
import json
import logging
import numbers
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from PIL.Image import Image

from jaxvision.augment import host, on_device
from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError, unknown
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.features import FeatureExtractor
from jaxvision.models.layers.init import streams
from jaxvision.models.layers.mode import eval_view
from jaxvision.train import partial
from jaxvision.weights import catalog, files, hub, timm

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "float64")


@overload
def create_model(
    name: str, pretrained: bool = False, *, features_only: Literal[True], **options: Any
) -> FeatureExtractor: ...
@overload
def create_model(name: str, pretrained: bool = False, **options: Any) -> Model: ...
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | None = None,
    revision: str | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    dropout: float | None = None,
    head_dropout: float | None = None,
    attention_dropout: float | None = None,
    drop_path: float | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    freeze_backbone: bool = False,
    freeze_layers: int = 0,
    freeze: Sequence[str] = (),
    dtype: Any = None,
    param_dtype: Any = "float32",
    seed: int = 0,
    **options: Any,
) -> Model | FeatureExtractor:
    """Returns a model that is ready to predict (evaluation view).

    Args:
      name: timm's name, ``"resnet50"``, with a weight tag if one is wanted, ``"resnet50.a1_in1k"``.
      pretrained: take the weights of the tag (without one: the architecture's default tag) from the hub or its cache.
      checkpoint_path: take them from this file instead; no network is touched. Safetensors, or where torch is installed
        a PyTorch pickle, such as a checkpoint of timm's trainer.
      revision: branch, tag or commit of the weights' repository on the hub. Default: its main branch.
      num_classes: of the head. Another number than the weights have gives a fresh head; 0 gives none.
        Default: as many as the weights have; without weights the tag's own number, 1000 for a name without tag.
      image_size: side of the square image in pixels; of a ViT also (height, width). A ViT's position grid is resampled
        to it, as timm does; a convnet takes any size and only notes it. Default: the size the weights were trained at.
      in_channels: channels of the image. The first convolution is adapted as timm does.
      dropout: before the classifier of a convnet, timm's ``drop_rate``; after position embedding, attention and MLP of
        a ViT, timm's ``pos_drop_rate`` and ``proj_drop_rate``. Default 0.
      head_dropout: before the classifier of a ViT, timm's ``drop_rate``. Default 0.
      attention_dropout: of a ViT's attention weights. Default 0.
      drop_path: stochastic depth, rising from 0 at the first block to this at the last (of an EfficientNet: to just
        below it). Default 0.
      features_only: give a `FeatureExtractor` in the place of a classifier: called with images it returns a tuple of
        maps, the finest first. There is no head, whatever `num_classes`.
      out_indices: which maps, with `features_only`: positions in the model's ``feature_info``, or a number for so many
        of the last. Default: all five of a convnet, strides 2 to 32; the last three blocks of a ViT.
      freeze_backbone: everything but the head is frozen (`jaxvision.train.partial.freeze`).
      freeze_layers: the first n groups are frozen: stem and stages of a convnet, patch embedding and blocks of a ViT.
      freeze: names of parameters to freeze, as regular expressions anchored at the start.
      dtype: of the computation, such as ``"bfloat16"``. Default: that of the parameters.
      param_dtype: of the parameters.
      seed: of everything that is not loaded.
      **options: further arguments of the architecture's class, such as ``patch_size`` of a ViT.

    Returns:
      A `Model`; with `features_only` a `FeatureExtractor`.

    Raises:
      UserError: an unknown name, tag or option, or weights that do not fit; the message says what would.

    Example:
      >>> import jaxvision, jax.numpy as jnp
      >>> model = jaxvision.create_model("test_vit", num_classes=10, image_size=32, patch_size=8)
      >>> model(jnp.zeros((1, 32, 32, 3))).shape
      (1, 10)
      >>> features = jaxvision.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3))
      >>> [x.shape for x in features(jnp.zeros((1, 64, 64, 3)))]
      [(1, 16, 16, 32), (1, 8, 8, 48), (1, 4, 4, 192)]
      >>> [(level.channels, level.stride) for level in features.feature_info]
      [(32, 4), (48, 8), (192, 16)]
    """
    if not isinstance(name, str):
        raise UserError(f"a model is asked for by its name, such as 'resnet50.a1_in1k'; got {name!r}")
    try:
        entry = catalog.lookup(name)
    except UserError as e:
        if os.path.isdir(name):
            raise UserError(f"{name} is a folder; load a run's model by jaxvision.load_classifier({name!r})") from e
        raise
    if num_classes is not None:
        registry.whole("num_classes", num_classes, 0)
    sides = isinstance(image_size, list | tuple) and registry.variant(entry.architecture).family == "vit"
    if image_size is not None and not sides:
        registry.whole("image_size", image_size, 1)
    registry.whole("in_channels", in_channels, 1)
    registry.whole("freeze_layers", freeze_layers, 0)
    registry.whole("seed", seed, 0)
    freeze = (freeze,) if isinstance(freeze, str) else freeze
    if not isinstance(freeze, list | tuple) or not all(isinstance(pattern, str) for pattern in freeze):
        raise UserError(f"freeze is a list of regular expressions of names, such as ['conv1']; got {freeze!r}")
    if not isinstance(checkpoint_path, str | Path | None):
        raise UserError(f"checkpoint_path is the path of a file; got {checkpoint_path!r}")
    if not isinstance(revision, str | None):
        raise UserError(f"revision is the name of a branch, a tag or a commit; got {revision!r}")
    # Options are looked at before the file is: a misspelt one should not wait for a download.
    registry.check_options(f"argument of {entry.architecture}", options, registry.options(entry.architecture))
    if entry.activation is not None and "activation" not in options:
        # timm lists these weights here, too, under an architecture of exact GELU, which is not what they were made for.
        logger.warning("the weights %s were trained with activation=%r: it is used", entry.name, entry.activation)
        options["activation"] = entry.activation
    if revision is not None and (checkpoint_path is not None or not pretrained):
        raise UserError("revision is of weights on the hub: it needs pretrained=True and no checkpoint_path")
    if out_indices is not None and not features_only:
        raise UserError("out_indices chooses maps of features: it needs features_only=True")
    path: Path | None = None
    published = entry.num_classes
    if checkpoint_path is not None:
        path = Path(checkpoint_path)
        published = timm.num_classes(path, entry.classifier)
    elif pretrained:
        path = hub.fetch(entry, revision=revision)
    if features_only:
        num_classes = 0
    overrides: dict[str, Any] = {
        "num_classes": published if num_classes is None else num_classes,
        "image_size": entry.preprocess.image_size if image_size is None else image_size,
        "in_channels": in_channels,
        "dtype": _dtype(dtype),
        "param_dtype": _dtype(param_dtype),
        **options,
    }
    # None means "not said": a ViT takes attention_dropout and head_dropout, a convnet need not hear of them.
    rates = {
        "dropout": dropout,
        "head_dropout": head_dropout,
        "attention_dropout": attention_dropout,
        "drop_path": drop_path,
    }
    overrides |= {key: rate for key, rate in rates.items() if rate is not None}
    for key, rate in rates.items():
        if rate is not None and not (isinstance(rate, numbers.Real) and 0 <= rate < 1):
            raise UserError(f"{key} is a probability in [0, 1), got {rate!r}")

    rngs = streams(params=seed, dropout=seed + 1)
    if path is None:
        model = registry.build(entry.architecture, rngs=rngs, **overrides)
    else:
        # The classes of the file come with its head; other ones that were asked for begin with a fresh one.
        head: timm.Head = "load" if overrides["num_classes"] == published else "fresh"
        model = timm.load_timm(
            registry.build_abstract(entry.architecture, **overrides),
            path,
            head=head,
            published=checkpoint_path is None,
            rngs=rngs,
        )
    if freeze_backbone or freeze_layers or freeze:
        partial.freeze(model, backbone=freeze_backbone, layers=freeze_layers, patterns=freeze)
    return eval_view(FeatureExtractor(model, out_indices) if features_only else model)


def create_resnet(config: Mapping[str, Any]) -> Model:
    """Returns a ResNet from a dictionary.

    Args:
      config: ``architecture`` (timm's name) and any argument of `create_model`: ``num_classes``, ``pretrained``,
        ``checkpoint_path``, ``image_size``, ``in_channels``, ``dropout``, ``freeze_backbone``, ``freeze_layers``, ...

    Raises:
      UserError: an unknown key or architecture; the message names the nearest valid ones.

    Example:
      >>> model = create_resnet({"architecture": "test_resnet", "num_classes": 10, "freeze_layers": 2})
      >>> model.num_classes
      10
    """
    return _create_from_dictionary("resnet", config)


def create_vit(config: Mapping[str, Any]) -> Model:
    """Returns a Vision Transformer from a dictionary; see `create_resnet`. Also ``attention_dropout``, ``patch_size``.

    Example:
      >>> model = create_vit({"architecture": "test_vit", "num_classes": 10, "dropout": 0.1, "attention_dropout": 0.1})
      >>> model.num_classes
      10
    """
    return _create_from_dictionary("vit", config)


def create_efficientnet(config: Mapping[str, Any]) -> Model:
    """Returns an EfficientNet from a dictionary; see `create_resnet`.

    Example:
      >>> model = create_efficientnet({"architecture": "test_efficientnet", "num_classes": 10, "dropout": 0.3})
      >>> model.num_classes
      10
    """
    return _create_from_dictionary("efficientnet", config)


def _create_from_dictionary(family: str, config: Mapping[str, Any]) -> Model:
    config = dict(config)
    if "architecture" not in config:
        example = registry.architectures(family=family)[0]
        raise UserError(f"create_{family} needs the key 'architecture', such as {example!r}")
    name = config.pop("architecture")
    architecture = str(name).partition(".")[0]
    if architecture not in registry.architectures(family=family):
        raise unknown(f"{family} architecture", name, registry.architectures(family=family))
    generic = set(create_model.__kwdefaults__ or ()) | {"pretrained"}
    if family != "vit":
        generic -= {"attention_dropout", "head_dropout"}
    registry.check_options(f"key of create_{family}", config, generic | set(registry.options(architecture)))
    return create_model(name, **config)


def _dtype(dtype: Any) -> Any:
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return found


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
        """Returns what the model takes: [b, image_size, image_size, c], transformed as in evaluation and normalised.

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
        return on_device.normalise(pixels, self.preprocess.mean, self.preprocess.std)

    def pixels(self, picture: str | Path | Image, *, times: int = 1) -> np.ndarray:
        """Returns one picture as the model sees it before it is normalised, uint8 [image_size, image_size, c].

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
        "model_args": _timm_arguments(model),
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
    untold = {name: value for name, value in model.options if name not in {*_theirs(model), *_ONLY_AT_LOADING}}
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
        return Classifier(model, catalog.class_names(model.num_classes), _grey(preprocess, model.in_channels))
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
    arguments |= {ours: found.model_args[key] for key, ours in _OURS.items() if key in found.model_args}
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
    return Classifier(model, found.classes, _grey(preprocess, model.in_channels))


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


def _grey(preprocess: Preprocess, in_channels: int) -> Preprocess:
    """Returns the transform for pictures of one channel, where it was of three."""
    if in_channels != 1 or len(preprocess.mean) == 1:
        return preprocess
    mean, std = (sum(values) / len(values) for values in (preprocess.mean, preprocess.std))
    return replace(preprocess, mean=(mean,), std=(std,))


# timm's argument -> ours. Other changes of shape than these timm cannot be told.
_OURS = {
    "img_size": "image_size",
    "in_chans": "in_channels",
    "patch_size": "patch_size",
    "global_pool": "global_pool",
    "mlp_ratio": "mlp_ratio",
    "init_values": "layer_scale",
    "class_token": "class_token",
    "reg_tokens": "reg_tokens",
    "no_embed_class": "no_embed_class",
    "pre_norm": "pre_norm",
    "final_norm": "final_norm",
    "fc_norm": "fc_norm",
    "pool_include_prefix": "pool_include_prefix",
    "dynamic_img_size": "dynamic_image_size",
    "act_layer": "activation",
    "layers": "depths",
    "channels": "widths",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
}


_MARK = "jaxvision.export"


def _height_and_width(model: Model, preprocess: Preprocess) -> tuple[int, int]:
    size = model.image_size if model.family == "vit" else preprocess.image_size
    return registry.pair("image_size", size)


_ONLY_AT_LOADING = ("interpolation", "ignore_remainder")  # they change nothing of what a saved model computes


def _is_export(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _timm_arguments(model: Model) -> dict[str, Any]:
    arguments: dict[str, Any] = {"in_chans": model.in_channels} if model.in_channels != 3 else {}
    if model.family == "vit":
        arguments["img_size"] = model.image_size
    theirs = _theirs(model)
    return arguments | {theirs[name]: value for name, value in model.options if name in theirs}


def _theirs(model: Model) -> dict[str, str]:
    theirs = {ours: name for name, ours in _OURS.items()}
    if model.family == "efficientnet":  # its depth is a factor, which timm keeps to itself
        del theirs["depth"]
    return theirs
