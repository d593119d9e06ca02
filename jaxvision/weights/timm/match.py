"""Matches the tensors of a file to the leaves of a model, and chooses how to adapt each tensor."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers import sizes
from jaxvision.weights import adapt
from jaxvision.weights.foreign.file import ForeignFile
from jaxvision.weights.prefix import find_prefixes
from jaxvision.weights.timm.names import GRID, timm_name, timm_shape, weights
from jaxvision.weights.weight_file import WeightFile, first_names

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
Adapter = Callable[[np.ndarray], np.ndarray]


def match_tensors(
    model: Model, file: WeightFile, targets: Mapping[str, nnx.Variable], shapes: Shapes, *, published: bool
) -> dict[str, Adapter]:
    """Returns, for each leaf, the function that adapts its tensor.

    Args:
      model: the model to fill.
      file: the open file.
      targets: the leaves to fill, by dotted name.
      shapes: the tensors of the file to use, by timm's name.
      published: see `load_timm`.

    Raises:
      UserError: leaves and tensors do not match one to one.
    """
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith(model.ignored_weights())}
    patches = model.patch_weights()
    grid = _find_grid(model, file, shapes, published)
    adapters: dict[str, Adapter] = {}
    missing, differing = [], []
    for name, leaf in targets.items():
        key = timm_name(name)
        wanted = timm_shape(name, leaf.shape)
        if key not in shapes:
            missing.append(key)
        elif shapes[key] == wanted and (name != patches.positions or grid in (None, patches.grid)):
            adapters[name] = lambda tensor: tensor
        elif (adapter := _adapter(model, name, shapes[key], wanted, grid)) is not None:
            # Weights for 3 channels are meant to be adapted; others were trained on another kind of image.
            unusual = _is_first_kernel(model, name) and shapes[key][1] not in (3, wanted[1])
            level = logging.WARNING if unusual else logging.INFO
            logger.log(level, "%s: adapting %s from %s to %s", file.path.name, key, list(shapes[key]), list(wanted))
            if name == patches.positions and isinstance(file, ForeignFile):
                logger.warning(
                    "%s: position embeddings are resampled as in timm (%s), which gives other values than %s",
                    file.path.name, patches.interpolation, file.origin.name,
                )  # fmt: skip
            adapters[name] = adapter
        else:
            differing.append(f"{key} {list(shapes[key])} in the file, {list(wanted)} in the model")
    unexpected = sorted(shapes.keys() - {timm_name(name) for name in targets})
    if missing or differing or unexpected:
        raise _mismatch_error(model, file, missing=missing, unexpected=unexpected, differing=differing)
    return adapters


def is_in_head(model: Model, name: str) -> bool:
    """Returns whether a leaf, or a tensor of a file, belongs to the head."""
    return name.startswith(tuple(f"{attribute}." for attribute in model.classifier_names))


def other_head_text(model: Model, shapes: Shapes, keys: Sequence[str]) -> str:
    """Returns what is wrong with a head of other layers than the model's, and what to do.

    Args:
      model: the model.
      shapes: the tensors of the file.
      keys: those of them that belong to the head's other layers.
    """
    wanted = " and ".join(f"{name}.weight" for name in model.classifier_names)
    listed = first_names([f"{key} {list(shapes[key])}" for key in keys])
    return (
        f"its head has other layers ({listed}), expected {wanted}. Rename the tensors if the head is one linear layer "
        "after dropout, or pass num_classes=0 to load everything but the head."
    )


def _mismatch_error(
    model: Model, file: WeightFile, *, missing: list[str], unexpected: list[str], differing: list[str]
) -> UserError:
    several = _models_in(file, model, missing)
    if len(several) > 1:
        return UserError(
            f"{file.path}: got {len(several)} models, with the prefixes {first_names(map(repr, several))}, expected "
            "one. Save the tensors of one of them as a file of their own."
        )
    problems = [
        f"{len(keys)} {what} ({first_names(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if keys
    ]
    advice = [text for pattern, text in model.missing_weight_hints if all(re.match(pattern, key) for key in missing)]
    in_head = [key for key in unexpected if is_in_head(model, key)]
    if not file.shapes:
        hint = "The file contains no tensors."
    elif re.search(r"-\d{5}-of-\d{5}\.", file.path.name):
        hint = (
            "The file is one of several parts. Join them by safetensors.torch.save_file with the tensors of all parts."
        )
    elif missing and 2 * len(set(missing).intersection(file.unused)) > len(missing):
        hint = "The file has these names, but without the prefix of its others. Rename the tensors to one form."
    elif (prefix := _common_prefix(model, missing, unexpected)) and missing:
        hint = f"The file has missing names with the prefix {prefix!r}. Rename the tensors to one form."
    elif prefix:
        hint = (
            f"The tensors with the prefix {prefix!r} are a second copy, beside the model's. Save the tensors of one of "
            "them as a file of their own."
        )
    elif in_head and in_head == unexpected and all(is_in_head(model, key) for key in missing) and not differing:
        hint = f"The file: {other_head_text(model, file.shapes, in_head)}"
    elif len(problems) == 1 and differing and all(is_in_head(model, text) for text in differing):
        hint = (
            f"The model has {model.num_classes} classes. Build it with the number of classes in the file, or load with "
            "head='fresh'."
        )
    elif missing and advice:
        hint = advice[0]
    elif file.shapes.keys().isdisjoint(map(timm_name, weights(model))):
        hint = (
            "No name in the file is one of the model's, so it has the weights of another architecture, or of this one "
            "with the names of another library. Pass the name that it was saved from, or timm's weights."
        )
    else:
        hint = (
            f"{file.path.name} may contain the weights of another architecture. Pass the name that it was saved from."
        )
    names = f", with timm's names for those of {file.origin.name}," if isinstance(file, ForeignFile) else ""
    return UserError(f"{file.path}{names} does not fit {model.architecture}: {', '.join(problems)}. {hint}")


def _common_prefix(model: Model, missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Returns the prefix with which a file has most of the missing tensors, or if none is missing, of all tensors.

    Empty if there is no such prefix.
    """
    wanted = missing or [timm_name(name) for name in weights(model)]
    found = set(unexpected)
    prefixes = {name.removesuffix(key) for key in wanted[:3] for name in found if name.endswith(f".{key}")}
    counts = {prefix: sum(prefix + key in found for key in wanted) for prefix in prefixes}
    best = max(counts, key=lambda prefix: counts[prefix], default="")
    return best if 2 * counts.get(best, 0) > len(wanted) else ""


def _models_in(file: WeightFile, model: Model, missing: Sequence[str]) -> list[str]:
    """Returns the prefixes at which a file has most of the tensors that are missing without a prefix.

    A name such as ``conv1`` may also be that of a layer in each block of another architecture.
    """
    prefixes = find_prefixes(file, model.first_conv)
    counts = {prefix: sum(prefix + key in file.shapes for key in missing) for prefix in prefixes if prefix}
    return [prefix for prefix, count in counts.items() if 2 * count > len(missing)]


def _adapter(
    model: Model, name: str, shape: tuple[int, ...], wanted: tuple[int, ...], grid: tuple[int, int] | None
) -> Adapter | None:
    """Returns the function that adapts a tensor from `shape` to `wanted`; None if there is no such function."""
    if len(shape) != len(wanted) or shape[0] != wanted[0]:
        return None
    patches = model.patch_weights()
    if name == patches.positions and shape[2] == wanted[2]:
        options: dict[str, Any] = {"old": grid, "new": patches.grid, "interpolation": patches.interpolation}
        return lambda tensor: adapt.position_grid(tensor, wanted[1], prefix=patches.prefix, **options)
    is_patch_kernel = name == patches.kernel
    is_first_kernel = _is_first_kernel(model, name)
    if not (is_patch_kernel or is_first_kernel):
        return None
    if (shape[1] != wanted[1] and not is_first_kernel) or (shape[2:] != wanted[2:] and not is_patch_kernel):
        return None

    def adapter(tensor: np.ndarray) -> np.ndarray:
        tensor = adapt.input_channels(tensor, wanted[1])
        if not is_patch_kernel:
            return tensor
        return adapt.patch_kernel(tensor, (wanted[2], wanted[3]), patches.interpolation)

    return adapter


def _is_first_kernel(model: Model, name: str) -> bool:
    return name == f"{model.first_conv}.kernel"


def _find_grid(model: Model, file: WeightFile, shapes: Shapes, published: bool) -> tuple[int, int] | None:
    """Returns the rows and columns of a file's position embeddings; None if unknown, and callers assume a square.

    The first of these grids that has as many positions as the file:

    1. the grid in the file's metadata, which `save_timm` writes,
    2. the grid at the architecture's own image size,
    3. the model's grid.

    Unless the weights are published ones, 3 comes before 2. Rules 2 and 3 are timm's.
    """
    patches = model.patch_weights()
    positions = shapes.get(timm_name(patches.positions), ())
    if len(positions) != 3:
        return None
    count = positions[1] - patches.prefix
    stated = re.fullmatch(r"(\d+)x(\d+)", file.metadata.get(GRID, ""))
    if stated and int(stated[1]) * int(stated[2]) == count:
        return int(stated[1]), int(stated[2])
    grid = _native_grid(model, shapes.get(timm_name(patches.kernel), ())[2:])
    if grid is not None and math.prod(grid) != count:
        grid = None
    if published or grid in (None, patches.grid) or math.prod(patches.grid) != count:
        return grid
    rows, columns = patches.grid
    logger.warning(
        "%s does not state the grid of its position embeddings; assuming that of the model, %d x %d",
        file.path, rows, columns,
    )  # fmt: skip
    return patches.grid


def _native_grid(model: Model, patch: tuple[int, ...]) -> tuple[int, int] | None:
    """Returns the grid of patches (h, w) on an image of the architecture's own size; None if one is unknown."""
    if len(patch) != 2 or model.architecture not in registry.architectures():
        return None
    native = registry.default_arguments(model.architecture).get("image_size")
    if native is None:
        return None
    height, width = sizes.pair("image_size", native)
    return height // patch[0], width // patch[1]
