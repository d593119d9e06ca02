"""A name into a model that is ready to predict.

Architectures (`models`), weight files (`weights`) and freezing (`train.partial`) meet here.
"""

from __future__ import annotations

import logging
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import jax.numpy as jnp

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.features import FeatureExtractor
from jaxvision.models.layers import sizes
from jaxvision.models.layers.init import streams
from jaxvision.models.layers.mode import eval_view
from jaxvision.train import partial
from jaxvision.weights import catalog, files, hub, timm
from jaxvision.weights.prefix import without_prefix
from jaxvision.weights.weight_file import WeightFile

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "float64")
RATES = ("dropout", "head_dropout", "attention_dropout", "drop_path")


@overload
def create_model(
    name: str | Callable[..., Model], pretrained: bool = False, *, features_only: Literal[True], **options: Any
) -> FeatureExtractor: ...
@overload
def create_model(name: str | Callable[..., Model], pretrained: bool = False, **options: Any) -> Model: ...
def create_model(
    name: str | Callable[..., Model],
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | WeightFile | None = None,
    revision: str | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    dropout: float | None = None,
    head_dropout: float | None = None,
    attention_dropout: float | None = None,
    drop_path: float | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    freeze_backbone: bool = False,
    freeze_layers: int = 0,
    freeze_batch_norm: bool = False,
    freeze: Sequence[str] = (),
    dtype: Any = None,
    param_dtype: Any = "float32",
    seed: int = 0,
    **options: Any,
) -> Model | FeatureExtractor:
    """Returns a model that is ready to predict (evaluation view).

    Args:
      name: timm's name, ``"resnet50"``, optionally with a weight tag, ``"resnet50.a1_in1k"``. With timm's prefixes,
        a folder or a repository in timm's format: ``"local-dir:runs/mine/export"``, ``"hf-hub:someone/mine@revision"``.
        Its model is built with the options that it states. For a model of your own: the name that you gave it by
        `jaxvision.register_model`, the class or function that builds it, or ``"package.module:function"``.
      pretrained: load the weights of the tag (by default the architecture's default tag) from the hub, its cache or an
        installed package that carries them.
      checkpoint_path: load the weights from this file, folder or workdir of a finished run instead, without network
        access. Safetensors, a NumPy archive, or a PyTorch file such as a checkpoint of timm's trainer, read without
        PyTorch. The names of other libraries, such as torchvision and transformers, are recognized and converted.
      revision: branch, tag or commit of the weights' repository on the hub. Default: its main branch.
      num_classes: number of classes of the head; 0 for no head. If the weights have another number, the head is freshly
        initialized. Default: that of the weights; without weights that of the tag.
      image_size: side of the square image in pixels; for a ViT also (height, width), and its position embeddings are
        resampled as in timm. A convnet accepts images of any size. Default: the size that the weights were trained at.
      in_channels: channels of the image. The first convolution is adapted as in timm. Default: 3, or what the folder or
        repository of `name` states.
      dropout: rate before the classifier of a convnet (timm's ``drop_rate``), or after position embeddings, attention
        and MLP of a ViT (timm's ``pos_drop_rate`` and ``proj_drop_rate``). Default: 0.
      head_dropout: rate before the classifier of a ViT (timm's ``drop_rate``). Default: 0.
      attention_dropout: rate on the attention weights of a ViT. Default: 0.
      drop_path: rate of stochastic depth at the last block; it rises linearly from 0 at the first. Default: 0.
      features_only: return a `FeatureExtractor`, which returns a tuple of feature maps, the finest first, instead of
        logits. `num_classes` is then ignored.
      out_indices: with `features_only`, which feature maps: positions in the model's ``feature_info``, or a number of
        last levels. Default: all five levels of a convnet, strides 2 to 32; the last three blocks of a ViT.
      freeze_backbone: freeze all layers except the head (`jaxvision.freeze`).
      freeze_layers: freeze the first n groups of layers: the stem and the stages of a convnet, the patch embedding and
        the blocks of a ViT.
      freeze_batch_norm: freeze every BatchNorm, with its statistics, for fine-tuning on few images or in small batches.
      freeze: regular expressions, anchored at the start, of the names of parameters to freeze.
      dtype: dtype of the computation, such as ``"bfloat16"``. Default: `param_dtype`.
      param_dtype: dtype of the parameters.
      seed: seed of everything that is not loaded.
      **options: further arguments of the architecture's class, such as ``patch_size`` of a ViT.

    Returns:
      A `Model`, or with `features_only` a `FeatureExtractor`.

    Raises:
      UserError: an unknown name, tag or option, or weights that do not fit.

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
    entry = _find_entry(name)
    _check_sizes(entry, num_classes, image_size, in_channels)
    sizes.require_int("freeze_layers", freeze_layers, 0)
    sizes.require_int("seed", seed, 0)
    patterns = _parse_patterns(freeze)
    if out_indices is not None and not features_only:
        raise UserError("out_indices: got it without features_only. Pass features_only=True to get feature maps.")
    arguments: dict[str, Any] = {
        "image_size": entry.preprocess.image_size,
        "in_channels": 3,
        **entry.options,
        **_without_none(image_size=image_size, in_channels=in_channels),
        **_given_dtypes(entry, dtype, param_dtype),
        **_class_options(entry, options),
        **_given_rates(dropout, head_dropout, attention_dropout, drop_path),
    }
    file = _open_weights(entry, pretrained, checkpoint_path, revision)  # last: it may download
    published = entry.num_classes
    if checkpoint_path is not None and file is not None:
        file, published = _find_model(entry, file, arguments)
    if features_only:
        num_classes = 0
    arguments["num_classes"] = published if num_classes is None else num_classes

    rngs = streams(params=seed, dropout=seed + 1)
    if file is None:
        model = registry.build(entry.architecture, rngs=rngs, **arguments)
    else:
        model = timm.load_timm(
            registry.build_abstract(entry.architecture, **arguments),
            file,
            head="load" if num_classes is None or (num_classes and num_classes == published) else "fresh",
            published=checkpoint_path is None and entry.folder is None,
            rngs=rngs,
        )
    partial.freeze(
        model, backbone=freeze_backbone, layers=freeze_layers, batch_norm=freeze_batch_norm, patterns=patterns
    )
    return eval_view(FeatureExtractor(model, out_indices) if features_only else model)


def _find_entry(name: str | Callable[..., Model]) -> catalog.Entry:
    if not isinstance(name, str) and not callable(name):
        raise UserError(f"name: got {name!r}, expected a name such as 'resnet50.a1_in1k'.")
    try:
        return catalog.lookup(name)
    except UserError as e:
        if isinstance(name, str) and os.path.isdir(name):
            raise UserError(
                f"name: got the folder {name}, expected a name. Load its model by jaxvision.load_classifier({name!r})."
            ) from e
        raise


def _check_sizes(
    entry: catalog.Entry, num_classes: int | None, image_size: int | tuple[int, int] | None, in_channels: int | None
) -> None:
    if num_classes is not None:
        sizes.require_int("num_classes", num_classes, 0)
    if in_channels is not None:
        sizes.require_int("in_channels", in_channels, 1)
    # A function does not declare it, so a pair is accepted.
    takes_pair = getattr(registry.variant(entry.architecture).build, "has_fixed_image_size", True)
    if image_size is not None and not (takes_pair and isinstance(image_size, list | tuple)):
        sizes.require_int("image_size", image_size, 1)


def _parse_patterns(freeze: Any) -> tuple[str, ...]:
    patterns = (freeze,) if isinstance(freeze, str) else freeze
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError(f"freeze: got {freeze!r}, expected a list of regular expressions of names, such as ['conv1'].")
    return tuple(patterns)


def _without_none(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _given_rates(*rates: float | None) -> dict[str, float]:
    """Returns the rates that were given; a class need not have an argument for the others."""
    given = {name: rate for name, rate in zip(RATES, rates, strict=True) if rate is not None}
    for name, rate in given.items():
        if not (isinstance(rate, numbers.Real) and 0 <= rate < 1):
            raise UserError(f"{name}: got {rate!r}, expected a probability in [0, 1).")
    return given


def _class_options(entry: catalog.Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the class, with the activation that the weights were trained with."""
    valid, expected = registry.options(entry.architecture), f"an argument of {entry.architecture}"
    registry.check_options("create_model", options, valid, expected=expected)
    if entry.activation is None or "activation" in options:
        return dict(options)
    logger.warning("using activation=%r, which the weights %s were trained with", entry.activation, entry.name)
    return {**options, "activation": entry.activation}


def _open_weights(
    entry: catalog.Entry, pretrained: bool, checkpoint_path: str | Path | WeightFile | None, revision: str | None
) -> WeightFile | None:
    """Returns the open weight file of the arguments, downloaded if need be; None for no weights."""
    if not isinstance(checkpoint_path, str | Path | WeightFile | None):
        raise UserError(f"checkpoint_path: got {checkpoint_path!r}, expected the path of a file.")
    if not isinstance(revision, str | None):
        raise UserError(f"revision: got {revision!r}, expected the name of a branch, a tag or a commit.")
    if revision is not None and (checkpoint_path is not None or not pretrained):
        raise UserError("revision: got it without weights from the hub. Pass pretrained=True and no checkpoint_path.")
    if checkpoint_path is not None:
        return files.open_weights(checkpoint_path)
    return files.open_weights(hub.fetch(entry, revision=revision)) if pretrained else None


def _find_model(entry: catalog.Entry, file: WeightFile, arguments: Mapping[str, Any]) -> tuple[WeightFile, int]:
    """Returns the part of a file that contains the model, and the number of classes of its head; 0 if it has none."""
    classifier, first_conv = entry.classifier, entry.first_conv
    if not classifier:  # a model from outside the catalog
        abstract = registry.build_abstract(entry.architecture, **arguments, num_classes=entry.num_classes)
        classifier, first_conv = abstract.classifier_names, abstract.first_conv
    file = without_prefix(file, first_conv)
    return file, timm.num_classes(file, classifier)


def _given_dtypes(entry: catalog.Entry, dtype: Any, param_dtype: Any) -> dict[str, Any]:
    """Returns the dtypes as arguments of the class; one from outside jaxvision need not take the default ones."""
    parsed = {"dtype": _parse_dtype("dtype", dtype), "param_dtype": _parse_dtype("param_dtype", param_dtype)}
    taken = registry.options(entry.architecture)
    default = {"dtype": None, "param_dtype": jnp.dtype("float32")}
    return {key: value for key, value in parsed.items() if key in taken or value != default[key]}


def _parse_dtype(where: str, dtype: Any) -> Any:
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise unknown_name_error(where, dtype, DTYPES)
    return found


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
    """Returns a Vision Transformer from a dictionary, as `create_resnet` does.

    Args:
      config: see `create_resnet`; also ``attention_dropout``, ``head_dropout`` and ``patch_size``.

    Raises:
      UserError: an unknown key or architecture.

    Example:
      >>> model = create_vit({"architecture": "test_vit", "num_classes": 10, "dropout": 0.1, "attention_dropout": 0.1})
      >>> model.num_classes
      10
    """
    return _create_from_dictionary("vit", config)


def create_efficientnet(config: Mapping[str, Any]) -> Model:
    """Returns an EfficientNet from a dictionary, as `create_resnet` does.

    Args:
      config: see `create_resnet`.

    Raises:
      UserError: an unknown key or architecture.

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
        raise UserError(f"create_{family}: the key 'architecture' is missing. Add it, for example {example!r}.")
    name = config.pop("architecture")
    architecture = str(name).partition(".")[0]
    if architecture not in registry.architectures(family=family):
        raise unknown_name_error(
            "architecture",
            name,
            registry.architectures(family=family),
            expected=f"a model of the family {family}",
            fix=f'Run "jaxvision list --family {family}" for all names.',
        )
    of_every_model = {"pretrained", *(create_model.__kwdefaults__ or ())}.difference(RATES)
    valid = of_every_model | set(registry.options(architecture))
    registry.check_options(f"create_{family}", config, valid, expected=f"an argument of {architecture}")
    return create_model(name, **config)
