"""From a name to a model that is ready to predict, and from a model to a folder that timm reads.

This is the one place where architectures (`models`), files (`weights`) and freezing (`train.partial`) meet.
"""

from __future__ import annotations

import logging
import numbers
import os
from collections.abc import Mapping, Sequence
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
from jaxvision.weights import catalog, hub, timm

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
        sizes.require_int("num_classes", num_classes, 0)
    sides = isinstance(image_size, list | tuple) and registry.variant(entry.architecture).family == "vit"
    if image_size is not None and not sides:
        sizes.require_int("image_size", image_size, 1)
    sizes.require_int("in_channels", in_channels, 1)
    sizes.require_int("freeze_layers", freeze_layers, 0)
    sizes.require_int("seed", seed, 0)
    freeze = (freeze,) if isinstance(freeze, str) else freeze
    if not isinstance(freeze, list | tuple) or not all(isinstance(pattern, str) for pattern in freeze):
        raise UserError(f"freeze is a list of regular expressions of names, such as ['conv1']; got {freeze!r}")
    if not isinstance(checkpoint_path, str | Path | None):
        raise UserError(f"checkpoint_path is the path of a file; got {checkpoint_path!r}")
    if not isinstance(revision, str | None):
        raise UserError(f"revision is the name of a branch, a tag or a commit; got {revision!r}")
    # Options are looked at before the file is: a misspelled one should not wait for a download.
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
        raise unknown_name_error(f"{family} architecture", name, registry.architectures(family=family))
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
        raise unknown_name_error("dtype", dtype, DTYPES)
    return found
