"""What every model is, whatever its family."""

from __future__ import annotations

import numbers
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxvision.errors import UserError


class FeatureInfo(NamedTuple):
    """One level of what `forward_intermediates` returns.

    Attributes:
      name: of the module that puts it out, such as ``"layer2"``.
      channels: c of the map [b, h, w, c].
      stride: pixels of the image for one of the map.
    """

    name: str
    channels: int
    stride: int


def in_turn(name: str, blocks: Sequence[Any], x: jax.Array) -> jax.Array:
    """Returns `x` passed through each block in turn; `name` is that of the attribute that holds them."""
    del name
    for block in blocks:
        x = block(x)
    return x


class Model(nnx.Module):
    r"""An image classifier: images [b, h, w, c] -> logits [b, num_classes].

    Attributes:
      architecture: timm's name, such as ``"resnet50"``.
      family: ``"resnet"``, ``"resnetv2"``, ``"vit"`` or ``"efficientnet"``.
      num_classes: of the head; 0 is no head.
      in_channels: channels of the image.
      image_size: side of the image in pixels; a convnet takes any other, too. (height, width) of a ViT whose images are
        not square.
      num_features: c of the pooled features that the head sees.
      classifier_names: paths of what is the head, such as ``("fc",)``, ``("head", "head_dist")`` or ``("head.fc",)``.
      options: ((argument, value), ...) by which the shape of this model differs from its row in the family's table.
      first_conv: path of the convolution that sees the image, such as ``"conv1"`` or ``"patch_embed.proj"``.
      table_only: arguments of the class that are code, such as the kind of block: a row of the table gives them.
      feature_info: name, channels and stride of each level that `forward_intermediates` has.
      block_pattern: regular expression, anchored at the start, of the names of the parameters that lie in the blocks
        passed to `run_blocks`, such as ``r"blocks\.\d+\."``. ``""``: the model does not call `run_blocks`.
      tensor_rules: rows (pattern, spec over the mesh axis ``"tensor"``) for tensor parallelism. The first row that
        matches a parameter's name applies; a parameter that no row matches is replicated.
      explanation: ``"attention rollout"``, which needs a method `get_attention_maps`, or ``"Grad-CAM"``.
      has_fixed_image_size: whether parameters depend on `image_size`, which may then be (height, width).
      default_feature_levels: how many of the last levels a `FeatureExtractor` returns by default; None for all.
      options_unknown_to_timm: arguments of the class that timm's constructors do not take.
      run_blocks: what runs a row of blocks; in training `jaxvision.train.blocks.Blocks` may take its place.
    """

    architecture: str
    family: str
    num_classes: int
    in_channels: int
    image_size: Any  # int or, of a ViT, (height, width)
    num_features: int
    classifier_names: tuple[str, ...]
    first_conv: str
    feature_info: tuple[FeatureInfo, ...]
    options: tuple[tuple[str, Any], ...] = ()
    table_only: tuple[str, ...] = ()
    block_pattern: str = ""
    tensor_rules: tuple[tuple[str, PartitionSpec], ...] = ()
    explanation: str = "Grad-CAM"
    has_fixed_image_size: bool = False
    default_feature_levels: int | None = None
    options_unknown_to_timm: tuple[str, ...] = ()
    run_blocks: Callable[[str, Sequence[Any], jax.Array], jax.Array] = staticmethod(in_turn)

    def set_view(self, run_blocks: Callable[..., Any] | None = None) -> None:
        """Joins the view in which blocks are run in another way."""
        if run_blocks is not None:
            self.run_blocks = run_blocks

    @abstractmethod
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits [b, num_classes] of normalized images [b, h, w, c]."""

    @abstractmethod
    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns timm's features: [b, h', w', c] of a convnet, tokens [b, n, d] of a ViT."""

    @abstractmethod
    def forward_intermediates(
        self,
        images: jax.Array,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """Returns (features, maps) or the maps alone: of the levels `indices` of `feature_info`, None for all."""

    @abstractmethod
    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits of features, or with `pre_logits` what the classifier sees [b, num_features]."""

    @abstractmethod
    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Gives the model a fresh head, in place; nothing else is touched.

        Args:
          num_classes: width of the logits; 0 for no head.
          rngs: stream ``params``.
          global_pool: another pooling in front of the head, as at construction. None keeps the one there is.

        Raises:
          UserError: a pooling that there is not, or that this model cannot be given. Nothing is changed then.
        """

    @abstractmethod
    def cut(self, level: int) -> None:
        """Takes away, in place, what comes after a level of `feature_info`, but for the head (`FeatureExtractor`)."""

    @abstractmethod
    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns a pattern for each group of layers, the first layer first; what none matches belongs to the head."""

    @abstractmethod
    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns the names of parameters that never decay, beyond those with fewer than two axes."""


def with_options(model: Model, **changed: Any) -> tuple[tuple[str, Any], ...]:
    """Returns the options of a model of which some were changed after it was built, so that an export carries them."""
    return tuple(sorted((dict(model.options) | changed).items()))


def feature_indices(indices: int | Sequence[int] | None, n: int) -> tuple[int, ...]:
    """Returns which of `n` levels of features are wanted, the first level first.

    Args:
      indices: None for all of them, a number for so many of the last, or the levels, negative ones from the end.
      n: number of levels.

    Raises:
      UserError: a level that is not there.

    >>> feature_indices(None, 3), feature_indices(2, 3), feature_indices([-1, 0], 3)
    ((0, 1, 2), (1, 2), (0, 2))
    """
    if indices is None:
        return tuple(range(n))
    if not isinstance(indices, Sequence):
        if not isinstance(indices, numbers.Integral) or not 0 < int(indices) <= n:
            raise UserError(f"there are {n} levels of features; the last {indices!r} of them cannot be had")
        return tuple(range(n - int(indices), n))
    for i in indices:
        if not isinstance(i, numbers.Integral) or not -n <= int(i) < n:
            raise UserError(f"there are {n} levels of features, 0 to {n - 1} or -{n} to -1; there is no {i!r}")
    return tuple(sorted({int(i) % n for i in indices}))


def check_images(images: jax.Array, in_channels: int) -> None:
    """Raises unless `images` are what a model of `in_channels` takes, as far as shape and dtype tell.

    Raises:
      UserError: not [b, h, w, in_channels], or whole numbers: pixels that nobody has normalized yet.
    """
    if images.ndim != 4 or images.shape[-1] != in_channels:
        raise UserError(
            f"images of shape {list(images.shape)} do not fit: this model takes [b, h, w, {in_channels}], channels last"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}: a model takes them as floats, normalized by its mean and std, such as "
            "jaxvision.load_classifier(...).images(files) gives"
        )
