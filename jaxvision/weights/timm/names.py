"""timm's names and layouts for the tensors in a weight file, and its names for model arguments.

The attributes of a model have timm's names, so the dotted path of a leaf is almost the key of timm's tensor. Only the
last segment and the order of a kernel's axes differ:

    layer1.0.conv1.kernel  [h, w, in / groups, out]    layer1.0.conv1.weight    [out, in / groups, h, w]
    fc.kernel              [in, out]                   fc.weight                [out, in]
    layer1.0.bn1.scale     [c]                         layer1.0.bn1.weight      [c]
    layer1.0.bn1.mean      [c]                         layer1.0.bn1.running_mean
    pos_embed, cls_token, blocks.0.ls1.gamma           the same

No family needs its own table, because the leaves of a model determine which tensors a file must contain.
"""

from __future__ import annotations

from typing import Any

from flax import nnx

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models.base import Model
from jaxvision.models.layers.frozen import Frozen

_LAST_SEGMENT = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# PyTorch's BatchNorm counts its batches under this name. The count is not used.
COUNTER = "num_batches_tracked"
# Endings of the names that loading ignores: such counts, and that of torch.optim.swa_utils.AveragedModel.
COUNTERS = (COUNTER, "n_averaged")
# Metadata key for the rows and columns of a ViT's position embeddings, such as "4x25". The number of positions does not
# determine them.
GRID = "jaxvision.grid"

# timm's argument -> ours, for every argument that changes shapes or results and that timm has as well.
OURS = {
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
# Options without effect on a model that is already built.
_ONLY_AT_CONSTRUCTION = ("interpolation", "ignore_remainder")


def timm_name(leaf_name: str) -> str:
    """Returns the key of timm's tensor for the dotted name of a leaf.

    >>> timm_name("layer1.0.bn1.var"), timm_name("blocks.3.attn.qkv.kernel"), timm_name("cls_token")
    ('layer1.0.bn1.running_var', 'blocks.3.attn.qkv.weight', 'cls_token')
    """
    *parents, last = leaf_name.split(".")
    return ".".join([*parents, _LAST_SEGMENT.get(last, last)])


def timm_axes(leaf_name: str, ndim: int) -> tuple[int, ...]:
    """Returns the axes of a leaf in the order of timm's tensor: a kernel [*space, in, out] becomes [out, in, *space].

    >>> timm_axes("conv1.kernel", 4), timm_axes("conv1.bias", 1)
    ((3, 2, 0, 1), (0,))
    """
    if leaf_name.endswith("kernel"):
        return (ndim - 1, ndim - 2, *range(ndim - 2))
    return tuple(range(ndim))


def timm_shape(leaf_name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of timm's tensor for a leaf of `shape`.

    >>> timm_shape("conv1.kernel", (7, 7, 3, 64)), timm_shape("fc.kernel", (512, 10)), timm_shape("fc.bias", (10,))
    ((64, 3, 7, 7), (10, 512), (10,))
    """
    return tuple(shape[axis] for axis in timm_axes(leaf_name, len(shape)))


def weights(model: Model) -> dict[str, nnx.Variable]:
    """Returns the Variables that a weight file contains, by dotted name: parameters, frozen or not, and statistics.

    Random state, LoRA factors and intermediates are not part of a file.
    """
    found: dict[str, nnx.Variable] = {}
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param | nnx.BatchStat | Frozen) and not isinstance(variable, nnx.LoRAParam):
            found[tree.join(path)] = variable
    return found


def check_model(model: Any) -> None:
    """Raises an error unless `model` is a `Model`.

    Raises:
      UserError: `model` is a `FeatureExtractor` or another object.
    """
    if not isinstance(model, Model):
        is_wrapper = isinstance(getattr(model, "model", None), Model)
        raise UserError(
            f"timm's weight files: got a {type(model).__name__}, expected a model."
            + (" Pass its attribute `model`." if is_wrapper else "")
        )


def timm_arguments(model: Model) -> dict[str, Any]:
    """Returns the arguments with which ``timm.create_model(model.architecture, ...)`` builds the same model.

    Args:
      model: any model. The number of classes is not among the arguments.

    Example:
      >>> from jaxvision.models import registry
      >>> timm_arguments(registry.build_abstract("test_vit", patch_size=8))
      {'img_size': 160, 'patch_size': 8}
    """
    arguments: dict[str, Any] = {"in_chans": model.in_channels} if model.in_channels != 3 else {}
    if model.has_fixed_image_size:
        arguments["img_size"] = model.image_size
    names = _timm_argument_names(model)
    return arguments | {names[name]: value for name, value in model.options if name in names}


def unknown_to_timm(model: Model) -> dict[str, Any]:
    """Returns the options of a model that timm has no argument for. timm cannot build the same model.

    Example:
      >>> from jaxvision.models import registry
      >>> unknown_to_timm(registry.build_abstract("test_resnet", antialias="blur"))
      {'antialias': 'blur'}
    """
    expressible = {*_timm_argument_names(model), *_ONLY_AT_CONSTRUCTION}
    return {name: value for name, value in model.options if name not in expressible}


def _timm_argument_names(model: Model) -> dict[str, str]:
    return {ours: theirs for theirs, ours in OURS.items() if ours not in model.options_unknown_to_timm}
