"""The base class of every model, and helpers for its subclasses."""

from __future__ import annotations

import functools
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from jaxvision.errors import UserError
from jaxvision.models.layers import sizes
from jaxvision.models.layers.frozen import replace_layer
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.materialize import materialize_gradient


class FeatureInfo(NamedTuple):
    """One level of features that `Model.forward_intermediates` returns.

    Attributes:
      name: path of the module whose output it is, such as ``"layer2"``.
      channels: c of the map [b, h, w, c].
      stride: image pixels per map pixel, along each side.
    """

    name: str
    channels: int
    stride: int


class PatchWeights(NamedTuple):
    """The weights that depend on how a model divides images into patches. Loading resamples them to the model's own.

    Attributes:
      kernel: name of the kernel that projects a patch, such as ``"patch_embed.proj.kernel"``; ``""`` for none.
      positions: name of the position embeddings [1, prefix + rows * columns, d], such as ``"pos_embed"``; ``""`` for
        none.
      prefix: number of positions before those of the patches.
      grid: rows and columns of patches.
      interpolation: how they are resampled: ``"bicubic"``, or ``"bilinear"`` without antialiasing.
    """

    kernel: str = ""
    positions: str = ""
    prefix: int = 0
    grid: tuple[int, int] = (0, 0)
    interpolation: str = "bicubic"


class FineTuning(NamedTuple):
    """How to fine-tune the pretrained weights of a family: the values of ``"auto"`` in a config.

    Attributes:
      learning_rate: peak of AdamW's rate, for batches of about 32 images.
      layer_decay: factor on the rate from each layer to the one before it; None for one rate for all layers.
    """

    learning_rate: float
    layer_decay: float | None


def run_in_order(name: str, blocks: Sequence[Any], x: jax.Array) -> jax.Array:
    """Returns `x` passed through each block in order: the default `Model.run_blocks`. Profiles show `name`."""
    for i, block in enumerate(blocks):
        with jax.named_scope(f"{name}.{i}"):
            x = block(materialize_gradient(x))
    return x


class Model(nnx.Module):
    r"""An image classifier: images [b, h, w, c] -> logits [b, num_classes].

    To write a model of your own, subclass `Model` and register the class with `jaxvision.register_model`. A subclass

    - takes the keyword arguments ``num_classes``, ``in_channels``, ``image_size`` and ``rngs``, sets the first three as
      attributes, and draws its parameters from `rngs` alone,
    - sets `num_features` and `classifier_names`,
    - defines `forward_features` and `forward_head`.

    Everything else has a default: one group of layers besides the head, no levels of features, replicated parameters.

    Attributes:
      architecture: name in the registry, such as ``"resnet50"``. `registry.build` sets it.
      family: ``"resnet"``, ``"resnetv2"``, ``"vit"``, ``"efficientnet"``, or ``"custom"`` for a user's model.
        `registry.build` sets it.
      num_classes: width of the logits; 0 means that the model has no head.
      in_channels: channels of the images.
      image_size: side of the images in pixels, or (height, width) for images that are not square.
      num_features: width of the pooled features that the head takes.
      classifier_names: paths of the layers that form the head, such as ``("fc",)``, ``("head", "head_dist")`` or
        ``("head.fc",)``.
      first_conv: path of the convolution that takes the images, such as ``"conv1"``. When weights are loaded, its
        kernel is adapted to `in_channels`. ``""``: there is no such convolution.
      feature_info: name, channels and stride of each level that `forward_intermediates` returns.
      options: pairs (argument, value) that differ from the architecture's row in the registry and change the model's
        structure. `registry.build` sets it, and an export stores it.
      table_only: constructor arguments that are classes or functions, such as a kind of block. Only a row of the
        registry can set them.
      block_pattern: regular expression, anchored at the start, of the names of the parameters in the blocks passed
        to `run_blocks`, such as ``r"blocks\.\d+\."``. ``""``: the model does not call `run_blocks`.
      tensor_rules: rows (pattern, spec over the mesh axis ``"tensor"``) for tensor parallelism. The first row that
        matches a parameter's name applies; a parameter that no row matches is replicated.
      lora_pattern: regular expression, anchored at the start, of the names of the linear layers that `add_lora` adapts
        by default. ``""``: the user has to name them.
      fine_tuning: the learning rate and layer decay that suit pretrained weights.
      explanation: ``"attention rollout"``, which needs a method `get_attention_maps`, or ``"Grad-CAM"``.
      has_fixed_image_size: whether parameters depend on `image_size`. If so, it may be (height, width).
      default_feature_levels: how many of the last levels a `FeatureExtractor` returns by default; None for all.
      options_unknown_to_timm: constructor arguments that timm's constructors do not take.
      missing_weight_hints: rows (pattern, advice) for weight files that do not fit. The advice is given if all missing
        tensors match the pattern.
      run_blocks: function (name, blocks, x) -> x that runs consecutive blocks. In training,
        `jaxvision.train.blocks.Blocks` may replace it.

    Example:
      >>> import jax.numpy as jnp
      >>> class Tiny(Model):
      ...     classifier_names = ("head",)
      ...
      ...     def __init__(self, *, num_classes=1000, in_channels=3, image_size=32, rngs):
      ...         self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
      ...         self.conv = nnx.Conv(in_channels, 16, (3, 3), strides=2, rngs=rngs)
      ...         self.num_features = 16
      ...         self.head = linear_head(16, num_classes, rngs=rngs)
      ...
      ...     def forward_features(self, images):
      ...         return nnx.relu(self.conv(images))
      ...
      ...     def forward_head(self, features, pre_logits=False):
      ...         x = features.mean(axis=(1, 2))
      ...         return x if pre_logits or self.head is None else self.head(x)
      >>> Tiny(num_classes=10, rngs=nnx.Rngs(0))(jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)
    """

    architecture: str = ""
    family: str = "custom"
    num_classes: int
    in_channels: int
    image_size: Any  # int or (height, width)
    num_features: int
    classifier_names: tuple[str, ...]
    first_conv: str = ""
    feature_info: tuple[FeatureInfo, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    table_only: tuple[str, ...] = ()
    block_pattern: str = ""
    tensor_rules: tuple[tuple[str, PartitionSpec], ...] = ()
    lora_pattern: str = ""
    fine_tuning: FineTuning = FineTuning(learning_rate=5e-4, layer_decay=None)
    explanation: str = "Grad-CAM"
    has_fixed_image_size: bool = False
    default_feature_levels: int | None = None
    options_unknown_to_timm: tuple[str, ...] = ()
    missing_weight_hints: tuple[tuple[str, str], ...] = ()
    run_blocks: Callable[[str, Sequence[Any], jax.Array], jax.Array] = staticmethod(run_in_order)

    def set_view(self, run_blocks: Callable[..., Any] | None = None) -> None:
        """Sets `run_blocks` in a view made by `nnx.view`."""
        if run_blocks is not None:
            self.run_blocks = run_blocks

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits [b, num_classes] of normalized `images` [b, h, w, in_channels]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the features before pooling: a map [b, h', w', c], or tokens [b, n, d] in a ViT.

        Args:
          images: float [b, h, w, in_channels], normalized.
        """
        raise self._undefined_error("forward_features")

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of `features`.

        Args:
          features: the result of `forward_features`.
          pre_logits: return the pooled features [b, num_features] that the classifier takes instead.
        """
        raise self._undefined_error("forward_head")

    def forward_heads(self, features: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the logits [b, num_classes] of each head, whose mean `forward_head` returns. Most models have one.

        In distillation the first head learns the labels and the last learns from the teacher.

        Args:
          features: the result of `forward_features`.
        """
        return (self.forward_head(features),)

    def forward_intermediates(
        self,
        images: jax.Array,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """Returns the features and one map for each level of `feature_info`.

        Args:
          images: float [b, h, w, in_channels], normalized.
          indices: None for all levels, a number n for the last n, or positions in `feature_info`.
          norm: apply the model's last norm to the maps.
          intermediates_only: return the list of maps only.

        Returns:
          ``(forward_features(images), maps)``, or ``maps``: a list of [b, h / stride, w / stride, channels].

        Raises:
          UserError: a level does not exist, or the images do not fit the model.
        """
        raise self._undefined_error("forward_intermediates")

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Replaces the head by a newly initialized one, in place; the other parameters are kept.

        Make views afterwards: a view that holds the previous head raises when it is called. Two things keep
        the old structure: a view of a model without a head still returns features, and ``nnx.cached_partial`` keeps the
        head that the model had when it was called.

        Args:
          num_classes: width of the logits; 0 removes the head.
          rngs: stream ``params``.
          global_pool: pooling before the head, as for the constructor. None keeps the current pooling.

        Raises:
          UserError: the model does not support this pooling. The model is then unchanged.
        """
        sizes.require_int("num_classes", num_classes, 0)
        if global_pool is not None:
            raise UserError(
                f"global_pool: got {global_pool!r}, but {type(self).__name__} supports only one pooling. Use None."
            )
        for path in self.classifier_names:
            *owners, attribute = path.split(".")
            owner = functools.reduce(getattr, owners, self)
            head = getattr(owner, attribute)
            if not isinstance(head, nnx.Linear | None):
                raise self._undefined_error(
                    "reset_classifier", f", and {path} is a {type(head).__name__}, not an nnx.Linear"
                )
            width = self.num_features if head is None else head.in_features
            types = {} if head is None else {"dtype": head.dtype, "param_dtype": head.param_dtype}
            replace_layer(owner, attribute, linear_head(width, num_classes, **types, rngs=rngs))
        self.num_classes = num_classes

    def cut(self, level: int) -> None:
        """Removes, in place, the layers after a level of `feature_info`, except the head. For `FeatureExtractor`."""
        raise self._undefined_error("cut")

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns one regular expression of parameter names for each group of layers, in forward order.

        Names that no pattern matches form the last group, the head. Layer-wise learning rates, partial freezing and the
        cost table use these groups. By default, everything except the head is one group.

        Args:
          coarse: return a group per stage instead of a group per block.
        """
        head = "|".join(re.escape(f"{path}.") for path in self.classifier_names)
        return (f"(?!{head})",)

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns the names of parameters without weight decay, in addition to those with fewer than two axes."""
        return ()

    def patch_weights(self) -> PatchWeights:
        """Returns the weights that loading resamples to the model's patches. By default there are none."""
        return PatchWeights()

    def ignored_weights(self) -> tuple[str, ...]:
        """Returns how the names of tensors begin that loading ignores if they are in a weight file."""
        return ()

    def _undefined_error(self, method: str, why: str = "") -> UserError:
        return UserError(f"{type(self).__name__}: the class does not define {method}{why}. Define it in the class.")


def with_options(model: Model, **changed: Any) -> tuple[tuple[str, Any], ...]:
    """Returns `model.options` with changes made after construction, so that an export includes them."""
    return tuple(sorted((dict(model.options) | changed).items()))


def feature_indices(indices: int | Sequence[int] | None, n: int, *, what: str = "indices") -> tuple[int, ...]:
    """Returns the positions of the selected levels of features, in ascending order.

    Args:
      indices: None for all levels, a number for that many of the last levels, or positions; negative positions count
        from the end.
      n: number of levels.
      what: name of the argument, for messages.

    Raises:
      UserError: the level does not exist.

    >>> feature_indices(None, 3), feature_indices(2, 3), feature_indices([-1, 0], 3)
    ((0, 1, 2), (1, 2), (0, 2))
    """
    if indices is None:
        return tuple(range(n))
    if not isinstance(indices, Sequence):
        if not isinstance(indices, numbers.Integral) or not 0 < int(indices) <= n:
            raise UserError(f"{what}: got {indices!r}, expected a number from 1 to {n}, or a list of levels.")
        return tuple(range(n - int(indices), n))
    for i in indices:
        if not isinstance(i, numbers.Integral) or not -n <= int(i) < n:
            raise UserError(f"{what}: got the level {i!r}, expected a level from 0 to {n - 1} or from -{n} to -1.")
    return tuple(sorted({int(i) % n for i in indices}))
