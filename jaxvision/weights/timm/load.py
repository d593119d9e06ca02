"""Loading one of timm's weight files into a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models.base import Model
from jaxvision.models.layers.deferred import Deferred, is_deferring, place_parts
from jaxvision.weights import files, foreign
from jaxvision.weights.prefix import without_prefix
from jaxvision.weights.timm.match import Adapter, Shapes, is_in_head, match_tensors, other_head_text
from jaxvision.weights.timm.names import COUNTERS, check_model, timm_axes, timm_name, weights
from jaxvision.weights.weight_file import FLOATS, WeightFile, first_names

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Model)
Head = Literal["auto", "load", "fresh"]


def load_timm(
    model: M,
    path: str | Path | WeightFile,
    *,
    head: Head = "auto",
    published: bool = False,
    rngs: nnx.Rngs | None = None,
) -> M:
    """Fills `model` in place from one of timm's weight files, and returns it.

    Every leaf of the model is filled and every tensor of the file is used; otherwise the model is unchanged and the
    error lists what does not fit. There are two exceptions, which are logged: a head that is replaced, and tensors
    beside the model in the file of a larger module (``criterion.weight`` beside ``model.*``). As in timm, the first
    convolution is adapted to the model's number of input channels and position embeddings are resampled to its grid.
    Values are cast to the dtype of the leaf and placed on its devices. The host holds one tensor at a time, and each of
    several hosts reads only the parts for its own devices. Within `jaxvision.models.layers.deferred.deferred`, a tensor
    is read and checked when its leaf is placed.

    Args:
      model: a model with arrays, or an abstract one from `registry.build_abstract`, which is filled without being
        initialized first.
      path: the file, its folder, or a file opened by `jaxvision.weights.files.open_weights`. Safetensors,
        a NumPy archive, or a PyTorch file (``.pth``, ``.pt``, ``.bin``, ``.pth.tar``) of a state_dict or of a training
        script's checkpoint. The names may share a prefix, such as ``model.``, or be those of another library.
      head: ``"load"`` requires that the file's classifier fits. ``"fresh"`` keeps the model's own classifier, and
        initializes that of an abstract model. The file's classifier must have the same layers. ``"auto"`` loads it
        unless the numbers of classes differ.
      published: whether the weights are timm's own. They were trained at the architecture's image size, so their
        position embeddings are resampled even to another grid with as many positions. Without `published`, position
        embeddings with as many positions as the model's are used as they are, unless the file states their grid.
      rngs: streams ``params`` and ``dropout`` for the parts of an abstract model that the file does not contain.
        Default: ``nnx.Rngs(0)``.

    Raises:
      UserError: the file is missing or truncated, its weights are those of another architecture, or values are not
        finite. The model is unchanged.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxvision.models import registry
      >>> from jaxvision.weights.timm import save_timm
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder, "model.safetensors")
      ...     save_timm(registry.build("test_resnet", rngs=nnx.Rngs(1)), file)
      ...     model = load_timm(registry.build_abstract("test_resnet", num_classes=10), file)
      >>> model.fc.kernel.shape[1]
      10
    """
    if head not in ("auto", "load", "fresh"):
        raise UserError(f"head: got {head!r}, expected 'auto', 'load' or 'fresh'.")
    check_model(model)
    file = without_prefix(files.open_weights(path), model.first_conv)
    targets = weights(model)
    shapes: Shapes = {key: shape for key, shape in file.shapes.items() if not key.endswith(COUNTERS)}
    head_names = [name for name in targets if is_in_head(model, name)]
    fresh: dict[str, nnx.Variable] = {}
    head_level: int | None = None
    if head == "fresh" or (head == "auto" and _heads_differ(model, targets, shapes)):
        fresh = {name: targets.pop(name) for name in head_names}
        is_untrained = head == "auto" or any(_is_abstract(leaf) for leaf in fresh.values())
        head_level = logging.WARNING if is_untrained else logging.INFO
        shapes = _without_head(model, file, shapes)
    adapters = match_tensors(model, file, targets, shapes, published=published)
    _check_dtypes(file, shapes)
    if not published:
        foreign.log_origin(file)
    foreign.log_differences(model, file)
    values = {name: _value(file, name, adapters[name], leaf.get_raw_value()) for name, leaf in targets.items()}
    if head_level is not None:
        _log_head(model, file, level=head_level)
    for name, leaf in targets.items():  # only now: every value is known to be valid
        leaf.set_value(values[name])
    if file.unused:
        logger.warning("%s: not used: %s", file.path, first_names(file.unused))
    _fill_remaining(model, fresh, nnx.Rngs(0) if rngs is None else rngs)
    return model


def num_classes(path: str | Path | WeightFile, classifier: Sequence[str]) -> int:
    """Returns the number of classes of the head in a file; 0 if it has none.

    Args:
      path: the file, its folder, or an open file. Its names must have no prefix; see `jaxvision.weights.prefix`.
      classifier: dotted names of the layers that may be the head, such as ``model.classifier_names``.

    Raises:
      UserError: the file is missing or truncated.
    """
    file = files.open_weights(path)
    heads = {f"{attribute}.weight" for attribute in classifier}.intersection(file.shapes)
    return file.shapes[min(heads)][0] if heads else 0


def _heads_differ(model: Model, targets: Mapping[str, nnx.Variable], shapes: Shapes) -> bool:
    wanted = {timm_name(name): leaf.shape[-1] for name, leaf in targets.items() if is_in_head(model, name)}
    if not wanted:
        return any(is_in_head(model, key) for key in shapes)
    return any(shapes.get(key, (0,))[0] != classes for key, classes in wanted.items())


def _without_head(model: Model, file: WeightFile, shapes: Shapes) -> Shapes:
    """Returns the tensors outside the head.

    Raises:
      UserError: the model has a head, and that of the file has other layers.
    """
    head = [key for key in shapes if is_in_head(model, key)]
    other = [key for key in head if key.rpartition(".")[0] not in model.classifier_names]
    others_fit = all(timm_name(name) in shapes for name in weights(model) if not is_in_head(model, name))
    if model.num_classes and other and others_fit:  # else the file is of another architecture
        raise UserError(f"{file.path} does not fit {model.architecture}: {other_head_text(model, shapes, other)}")
    return {key: shape for key, shape in shapes.items() if key not in head}


def _log_head(model: Model, file: WeightFile, *, level: int) -> None:
    """Logs at `level` that the model's head is not loaded. Called once the rest is known to fit."""
    head = [key for key in file.shapes if is_in_head(model, key) and not key.endswith(COUNTERS)]
    other = [key for key in head if key.rpartition(".")[0] not in model.classifier_names]
    what = (
        f"a head of {file.shapes[head[0]][0]} classes, which is not used"
        if head and file.shapes[head[0]]
        else "no head"
    )
    if model.num_classes:
        logger.log(level, "%s has %s: the head of %d classes is newly initialized", file.path, what, model.num_classes)
    elif head:  # no head was asked for, so only a head of other layers may be a surprise
        level = logging.WARNING if other else logging.INFO
        logger.log(level, "%s: the model has no head; not used: %s", file.path, first_names(head))


def _check_dtypes(file: WeightFile, shapes: Shapes) -> None:
    others = [f"{key} {file.dtypes[key]}" for key in shapes if file.dtypes[key] not in FLOATS]
    if others:
        raise UserError(
            f"{file.path}: got {len(others)} tensors of other dtypes ({first_names(others)}), expected one of "
            f"{', '.join(FLOATS)}. If they are quantized, use the weights from before the quantization; otherwise "
            "convert them by x.float()."
        )


def _is_abstract(leaf: nnx.Variable) -> bool:
    return isinstance(leaf.get_raw_value(), jax.ShapeDtypeStruct)


def _value(file: WeightFile, name: str, adapter: Adapter, old: Any) -> Any:
    """Returns the tensor of a leaf with the dtype and the sharding of `old`, its present value.

    If `old` has no sharding, JAX chooses the device. Within `deferred` the tensor is read when it is placed.
    """
    key = timm_name(name)

    def place(sharding: jax.sharding.Sharding | None) -> jax.Array:
        tensor = adapter(file.tensor(key))
        tensor = tensor.transpose(np.argsort(timm_axes(name, tensor.ndim)))
        value = _placed(tensor, old.dtype, sharding, what=f"{file.path}: the tensor {key}")
        file.forget(key)
        return value

    if is_deferring():
        return Deferred(old.shape, old.dtype, place)
    return place(getattr(old, "sharding", None) if getattr(old, "committed", True) else None)


def _placed(tensor: np.ndarray, dtype: Any, sharding: jax.sharding.Sharding | None, *, what: str) -> jax.Array:
    """Returns `tensor` with a dtype and a sharding. A process reads only the parts for its own devices.

    Casting a strided view copies it several times faster than numpy's copy would.

    Raises:
      UserError: values are not finite.
    """

    def part(index: Any) -> np.ndarray:
        with np.errstate(over="ignore"):  # an overflow is reported below
            value = tensor[index].astype(dtype, copy=False)
        if not _is_finite(value):
            raise _not_finite_error(what, tensor[index], value)
        # On a CPU, JAX may use aligned memory without a copy, and that must not be the memory of the file.
        return value.copy() if value.base is not None and value.flags.c_contiguous else value

    return place_parts(part, tensor.shape, sharding)


def _is_finite(value: np.ndarray) -> bool:
    if value.dtype in (np.float32, np.float64):
        # One pass without a mask. Only if the sum is not finite are the values themselves examined.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(value.sum()):
                return True
    return bool(np.isfinite(value).all())


def _not_finite_error(what: str, stored: np.ndarray, cast: np.ndarray) -> UserError:
    if stored.dtype != cast.dtype and _is_finite(stored):
        return UserError(
            f"{what} contains values that are too large for {cast.dtype}. Build the model with param_dtype='float32'."
        )
    return UserError(f"{what} contains values that are NaN or infinite. Load an earlier checkpoint of that training.")


def _fill_remaining(model: Model, fresh: Mapping[str, nnx.Variable], rngs: nnx.Rngs) -> None:
    """Initializes the leaves of an abstract model that no file contains: a fresh head, and the random state."""
    old = {name: leaf.get_raw_value() for name, leaf in fresh.items()}
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in old.values()):
        model.reset_classifier(model.num_classes, rngs=rngs)
        for name, leaf in weights(model).items():
            if name in fresh and old[name].sharding is not None:
                leaf.set_value(jax.device_put(leaf.get_raw_value(), old[name].sharding))
    for path, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Variable) and _is_abstract(leaf):
            assert isinstance(leaf, nnx.RngState), f"{tree.join(path)} is neither a weight nor random state"
            value = rngs.dropout() if isinstance(leaf, nnx.RngKey) else jnp.zeros((), jnp.uint32)
            sharding = leaf.get_raw_value().sharding
            leaf.set_value(value if sharding is None else jax.device_put(value, sharding))
