"""timm's weight files, both ways, without PyTorch.

A model's attributes carry timm's names, so the path of a leaf is the key of timm's tensor; the last segment and the
order of a kernel's axes differ:

    layer1.0.conv1.kernel  [h, w, in / groups, out]    layer1.0.conv1.weight    [out, in / groups, h, w]
    fc.kernel              [in, out]                   fc.weight                [out, in]
    layer1.0.bn1.scale     [c]                         layer1.0.bn1.weight      [c]
    layer1.0.bn1.mean      [c]                         layer1.0.bn1.running_mean
    pos_embed, cls_token, blocks.0.ls1.gamma           the same

So there is no table for any family: the target's own leaves say which tensors must be in the file.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers import sizes
from jaxvision.models.layers.frozen import Frozen
from jaxvision.weights import adapt, files

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Model)
Head = Literal["auto", "load", "fresh"]

_LAST_SEGMENT = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# PyTorch counts batches in each BatchNorm. Nothing reads the count; its files carry it.
_COUNTER = "num_batches_tracked"
# In a file's metadata: rows and columns of a ViT's positions, "4x25". Their number alone does not tell them.
_GRID = "jaxvision.grid"


def timm_name(leaf_name: str) -> str:
    """Returns the key of timm's tensor for the dotted name of a leaf.

    >>> timm_name("layer1.0.bn1.var"), timm_name("blocks.3.attn.qkv.kernel"), timm_name("cls_token")
    ('layer1.0.bn1.running_var', 'blocks.3.attn.qkv.weight', 'cls_token')
    """
    *parents, last = leaf_name.split(".")
    return ".".join([*parents, _LAST_SEGMENT.get(last, last)])


def _axes(leaf_name: str, ndim: int) -> tuple[int, ...]:
    """Returns a leaf's axes in the order of timm's tensor: a kernel's (space..., in, out) as (out, in, space...)."""
    if leaf_name.endswith("kernel"):
        return (ndim - 1, ndim - 2, *range(ndim - 2))
    return tuple(range(ndim))


def timm_shape(leaf_name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of timm's tensor for a leaf of `shape`.

    >>> timm_shape("conv1.kernel", (7, 7, 3, 64)), timm_shape("fc.kernel", (512, 10)), timm_shape("fc.bias", (10,))
    ((64, 3, 7, 7), (10, 512), (10,))
    """
    return tuple(shape[axis] for axis in _axes(leaf_name, len(shape)))


def weights(model: Model) -> dict[str, nnx.Variable]:
    """Returns the Variables that a file holds, by their dotted names: parameters, frozen or not, and statistics.

    Random state, LoRA's factors and intermediates are no weights.
    """
    found: dict[str, nnx.Variable] = {}
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param | nnx.BatchStat | Frozen) and not isinstance(variable, nnx.LoRAParam):
            found[tree.join(path)] = variable
    return found


# --- In ---------------------------------------------------------------------------------------------------------------


def load_timm(
    model: M, path: str | Path, *, head: Head = "auto", published: bool = False, rngs: nnx.Rngs | None = None
) -> M:
    """Fills `model` in place from a file of timm's, and returns it.

    Every weight of the model is read and nothing in the file is left over, or nothing is changed and the error lists
    what does not fit. The first convolution is adapted to another number of input channels and position embeddings to
    another grid, as timm does it. Values are cast to the dtype of the leaf and placed as the leaf is placed; the host
    never holds more of them than one tensor, and of many hosts each reads what its own devices hold.

    Args:
      model: a model with arrays, or an abstract one from `registry.build_abstract`, whose leaves are then filled
        without having been initialized first.
      path: the file, or a folder that holds a ``model.safetensors``. A PyTorch pickle (``.pth``, ``.pt``, ``.bin``,
        ``.pth.tar``) is read where torch is installed: a state_dict, or a checkpoint of timm's trainer.
      head: ``"load"`` takes the file's classifier, which has to fit; ``"fresh"`` leaves the model's own as it is (and
        initializes that of an abstract model); ``"auto"`` loads unless the numbers of classes differ.
      published: the weights are timm's own, trained at the architecture's size, so position embeddings for another grid
        of as many patches are resampled. Those of any other file that does not say its grid are taken as they are.
      rngs: streams ``params`` and ``dropout``, for what an abstract model cannot read; ``nnx.Rngs(0)`` if None.

    Raises:
      UserError: no such file, a truncated one, weights of another architecture, or values that are not finite. The
        model is then as it was.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxvision.models import registry
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder, "model.safetensors")
      ...     save_timm(registry.build("test_resnet", rngs=nnx.Rngs(1)), file)
      ...     model = load_timm(registry.build_abstract("test_resnet", num_classes=10), file)
      >>> model.fc.kernel.shape[1]
      10
    """
    if head not in ("auto", "load", "fresh"):
        raise UserError(f"head is 'auto', 'load' or 'fresh', but is {head!r}")
    _check_model(model)
    path = files.find(path)
    targets = weights(model)
    with files.open_tensors(path) as file:
        shapes = {key: shape for key, shape in file.shapes.items() if not key.endswith(_COUNTER)}
        head_names = [name for name in targets if _in_head(model, name)]
        fresh: dict[str, nnx.Variable] = {}
        if head == "auto":
            head = "fresh" if _heads_differ(model, targets, shapes) else "load"
            if head == "fresh" and head_names:  # who did not ask for it should hear that it cannot predict yet
                logger.warning("%s has no head of %d classes: it is untrained", path, model.num_classes)
        if head == "fresh":
            fresh = {name: targets.pop(name) for name in head_names}
            shapes = {key: shape for key, shape in shapes.items() if not _in_head(model, key)}
        adapters = _match(model, path, targets, shapes, _old_grid(model, path, shapes, file.metadata, published))
        _check_dtypes(path, {key: file.dtypes[key] for key in shapes})
        values = {}
        for name, leaf in targets.items():
            key = timm_name(name)
            tensor = adapters[name](file.tensor(key))
            tensor = tensor.transpose(np.argsort(_axes(name, tensor.ndim)))
            values[name] = _placed(tensor, leaf.get_raw_value(), what=f"{path}: the tensor {key}")
            file.forget(key)
    for name, leaf in targets.items():  # not before all of them are known to be sound
        leaf.set_value(values[name])
    _fill_the_rest(model, fresh, rngs)
    return model


def _match(
    model: Any,
    path: Path,
    targets: dict[str, nnx.Variable],
    shapes: dict[str, tuple[int, ...]],
    grid: tuple[int, int] | None,
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns what to do with each leaf's tensor on its way in; raises unless leaves and tensors match one to one."""
    adapters: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    missing, differing = [], []
    if getattr(model, "attn_pool", ...) is None:  # SigLIP's weights for a model that pools in another way, as in timm
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("attn_pool.")}
    for name, leaf in targets.items():
        key = timm_name(name)
        wanted = timm_shape(name, leaf.shape)
        if key not in shapes:
            missing.append(key)
        elif shapes[key] == wanted and not (name == "pos_embed" and grid not in (None, model.grid_size)):
            adapters[name] = lambda tensor: tensor
        elif (adapter := _adapter(model, name, shapes, wanted, grid)) is not None:
            # Weights for 3 channels are adapted to those that were asked for; others were made for other pictures.
            other = name == f"{model.first_conv}.kernel" and shapes[key][1] not in (3, wanted[1])
            level = logging.WARNING if other else logging.INFO
            logger.log(level, "%s: %s adapted from %s to %s", path.name, key, list(shapes[key]), list(wanted))
            adapters[name] = adapter
        else:
            differing.append(f"{key} {list(shapes[key])} in the file, {list(wanted)} in the model")
    unexpected = sorted(shapes.keys() - {timm_name(name) for name in targets})
    problems = [
        f"{len(keys)} {what} ({files.some(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if keys
    ]
    if not problems:
        return adapters
    if differing and len(problems) == 1 and all(_in_head(model, text.split()[0]) for text in differing):
        hint = (
            f"; the model has {model.num_classes} classes: build it with the file's number, or load with head='fresh'"
        )
    elif missing and all(key.startswith("fc_norm.") for key in missing):
        hint = "; these weights normalize before pooling: build the model with fc_norm=False"
    else:
        hint = f"; {path.name} may hold the weights of another architecture"
    raise UserError(f"{path} does not fit {model.architecture}: {', '.join(problems)}{hint}")


def _adapter(
    model: Any, name: str, shapes: dict[str, tuple[int, ...]], wanted: tuple[int, ...], grid: tuple[int, int] | None
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns the function that makes a file's tensor fit `wanted`, or None where that makes no sense."""
    shape = shapes[timm_name(name)]
    if len(shape) != len(wanted) or shape[0] != wanted[0]:
        return None
    if name == "pos_embed" and shape[2] == wanted[2]:
        options = {"old": grid, "new": model.grid_size, "interpolation": model.interpolation}
        return lambda tensor: adapt.position_grid(tensor, wanted[1], prefix=_own_positions(model), **options)
    patches = name == "patch_embed.proj.kernel"
    if patches or name == f"{model.first_conv}.kernel":
        seen = name == f"{model.first_conv}.kernel"
        if (shape[1] != wanted[1] and not seen) or (shape[2:] != wanted[2:] and not patches):
            return None

        def adapter(tensor: np.ndarray) -> np.ndarray:
            tensor = adapt.input_channels(tensor, wanted[1])
            if not patches:
                return tensor
            return adapt.patch_kernel(tensor, (wanted[2], wanted[3]), model.interpolation)

        return adapter
    return None


def _own_positions(model: Any) -> int:
    return 0 if model.no_embed_class else model.num_prefix_tokens


def _old_grid(
    model: Any, path: Path, shapes: dict[str, tuple[int, ...]], metadata: Mapping[str, str], published: bool
) -> tuple[int, int] | None:
    """Returns rows and columns of a file's position embeddings, if they can be known.

    A file of `save_timm` says them. Of any other they are the model's own where the number of positions is the same
    (not so of published weights), else those of the architecture's image size where theirs is, both as in timm. Else
    None, and whoever needs the grid takes it for a square.
    """
    if len(shapes.get("pos_embed", ())) != 3 or not hasattr(model, "grid_size"):
        return None
    said = re.fullmatch(r"(\d+)x(\d+)", metadata.get(_GRID, ""))
    grids = [(int(said[1]), int(said[2]))] if said else []
    patches = shapes["pos_embed"][1] - _own_positions(model)
    told = bool(grids) and math.prod(grids[0]) == patches
    patch = shapes.get("patch_embed.proj.weight", ())[2:]
    if len(patch) == 2:
        size = sizes.pair("image_size", registry.variant(model.architecture).arguments.get("image_size", 224))
        grids.append((size[0] // patch[0], size[1] // patch[1]))
    grid = next((grid for grid in grids if math.prod(grid) == patches), None)
    if told or published or grid in (None, model.grid_size) or math.prod(model.grid_size) != patches:
        return grid
    logger.warning(
        "%s does not say its grid of positions: it is taken for %d x %d, the model's", path, *model.grid_size
    )
    return model.grid_size


def _check_model(model: Any) -> None:
    if not isinstance(model, Model):
        advice = ": give its attribute `model`" if isinstance(getattr(model, "model", None), Model) else ""
        raise UserError(f"a file of timm's is of a model, not of a {type(model).__name__}{advice}")


def _sort_metadata(path: Path) -> None:
    """Gives a file's metadata one order: safetensors writes them in any, and equal models make equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


def _in_head(model: Model, name: str) -> bool:
    return name.startswith(tuple(f"{attribute}." for attribute in model.classifier_names))


def _heads_differ(model: Model, targets: dict[str, nnx.Variable], shapes: dict[str, tuple[int, ...]]) -> bool:
    ours = {name: leaf.shape[-1] for name, leaf in targets.items() if _in_head(model, name)}
    return any(shapes.get(timm_name(name), (0,))[0] != classes for name, classes in ours.items()) or (
        not ours and any(_in_head(model, key) for key in shapes)
    )


def _check_dtypes(path: Path, dtypes: dict[str, str]) -> None:
    others = [f"{key} {dtype}" for key, dtype in dtypes.items() if dtype not in files.FLOATS]
    if others:
        raise UserError(
            f"{path}: {len(others)} tensors are not floating point ({files.some(others)}); quantized files are not read"
        )


def _placed(tensor: np.ndarray, old: Any, *, what: str) -> jax.Array:
    """Returns `tensor` in the dtype of `old` and where `old` is; one that was nowhere in particular leaves it to JAX.

    A process reads only what its own devices hold. The strides of a view are undone on the way, which is several times
    faster than a copy by numpy.

    Raises:
      UserError: values that are not finite.
    """

    def part(index: Any) -> np.ndarray:
        with np.errstate(over="ignore"):  # what float16 cannot hold is told below
            value = tensor[index].astype(old.dtype, copy=False)
        if not _finite(value):
            raise UserError(f"{what} holds values that are NaN or infinite" + _overflow(tensor[index], value))
        # On a CPU JAX takes memory that is aligned as it is for its own, which must not be the file's.
        return value.copy() if value.base is not None and value.flags.c_contiguous else value

    sharding = getattr(old, "sharding", None) if getattr(old, "committed", True) else None
    if sharding is None or (sharding.is_fully_addressable and sharding.is_fully_replicated):
        return jax.device_put(part(...), sharding)
    indices = sharding.addressable_devices_indices_map(tensor.shape)
    shards = [jax.device_put(part(index), device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(tensor.shape, sharding, shards)


def _finite(value: np.ndarray) -> bool:
    if value.dtype in (np.float32, np.float64):
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # one pass and no mask: only a sum that is not finite asks on
            if np.isfinite(value.sum()):
                return True
    return bool(np.isfinite(value).all())


def _overflow(before: np.ndarray, after: np.ndarray) -> str:
    return f", too large for {after.dtype}" if before.dtype != after.dtype and _finite(before) else ""


def _fill_the_rest(model: Model, fresh: dict[str, nnx.Variable], rngs: nnx.Rngs | None) -> None:
    """Gives an abstract model what no file holds: the fresh head, and the state of random streams."""
    rngs = nnx.Rngs(0) if rngs is None else rngs
    old = {name: leaf.get_raw_value() for name, leaf in fresh.items()}
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in old.values()):
        model.reset_classifier(model.num_classes, rngs=rngs)
        for name, leaf in weights(model).items():
            if name in fresh and old[name].sharding is not None:
                leaf.set_value(jax.device_put(leaf.get_raw_value(), old[name].sharding))
    for path, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Variable) and isinstance(leaf.get_raw_value(), jax.ShapeDtypeStruct):
            assert isinstance(leaf, nnx.RngState), f"{tree.join(path)} is neither a weight nor random state"
            value = rngs.dropout() if isinstance(leaf, nnx.RngKey) else jnp.zeros((), jnp.uint32)
            sharding = leaf.get_raw_value().sharding
            leaf.set_value(value if sharding is None else jax.device_put(value, sharding))


def num_classes(path: str | Path, classifier: Sequence[str]) -> int:
    """Returns the number of classes of the head in a file, 0 if it has none.

    Args:
      path: the file, or a folder that holds a ``model.safetensors``.
      classifier: attributes that hold a head, as ``model.classifier_names`` and ``Entry.classifier`` name them.
    """
    with files.open_tensors(path) as file:
        heads = {f"{attribute}.weight" for attribute in classifier}.intersection(file.shapes)
        return file.shapes[min(heads)][0] if heads else 0


# --- Out --------------------------------------------------------------------------------------------------------------


def save_timm(model: Any, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the weights of `model` as a safetensors file that timm loads with ``strict=True``.

    The file appears whole or not at all: an earlier one of that name survives a full disk and a crash. Of a ViT its
    metadata say rows and columns of the position grid, which `load_timm` heeds and timm does not look at.

    Args:
      model: any model of the registry. Frozen leaves are saved like the others, in the dtype that each has.
      path: the file to write, ``*.safetensors``; its folder is made if need be.
      metadata: more to note in the file.

    Raises:
      UserError: the file is called otherwise (timm would take it for a pickle), the model holds LoRA factors (merge
        them first), or the file cannot be written.
    """
    _check_model(model)
    if Path(path).suffix != ".safetensors":
        raise UserError(f"weights are written as safetensors: call the file {Path(path).stem}.safetensors, not {path}")
    if any(isinstance(leaf, nnx.LoRAParam) for _, leaf in nnx.iter_graph(model)):
        raise UserError(
            "timm has no LoRA layers: merge them into the weights first, jaxvision.train.partial.merge_lora(model)"
        )
    tensors = {}
    for name, leaf in weights(model).items():
        array = np.asarray(jax.device_get(leaf.get_value()))
        # A transposed view would be written in the order of its memory, that is, as it was before.
        tensors[timm_name(name)] = np.ascontiguousarray(array.transpose(_axes(name, array.ndim)))
        if name.endswith(".mean"):
            tensors[name.removesuffix("mean") + _COUNTER] = np.zeros((), np.int64)
    metadata = {"format": "pt", **(metadata or {})}
    if "pos_embed" in tensors:
        metadata[_GRID] = "x".join(map(str, model.grid_size))
    path = Path(path).expanduser()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what this user's files have; safetensors lets nobody else read its own
        save_file(tensors, temporary, metadata=metadata)
        _sort_metadata(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # a network file system may say only here that its disk is full
        os.replace(temporary, path)
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot write {path}: {e}; an earlier file of that name is as it was") from e
    finally:
        with suppress(OSError):
            temporary.unlink()
