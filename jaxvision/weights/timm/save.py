"""Saving the weights of a model in a file that timm loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError

from jaxvision.errors import UserError
from jaxvision.weights import files
from jaxvision.weights.timm.names import COUNTER, GRID, check_model, timm_axes, timm_name, weights


def save_timm(model: Any, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the weights of `model` as a safetensors file that timm loads with ``strict=True``.

    Writing is atomic: if the disk is full or the process crashes, an earlier file of the same name is unchanged. The
    metadata of a ViT's file includes the rows and columns of its position embeddings, which `load_timm` reads and timm
    ignores.

    Args:
      model: any `Model`. Frozen leaves are saved as well, each leaf in its own dtype.
      path: the file to write, ``*.safetensors``. Its folder is created.
      metadata: additional key-value pairs for the file. Default: none.

    Raises:
      UserError: the suffix is another one (timm would read the file as a pickle), the model has LoRA factors, or the
        file cannot be written.

    Example:
      >>> import jaxvision, pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_timm(jaxvision.create_model("test_vit"), f"{folder}/model.safetensors")
      ...     [path.name for path in pathlib.Path(folder).iterdir()]
      ['model.safetensors']
    """
    check_model(model)
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise UserError(f"save_timm: got the file {path}, expected the suffix .safetensors: {path.stem}.safetensors.")
    if any(isinstance(leaf, nnx.LoRAParam) for _, leaf in nnx.iter_graph(model)):
        raise UserError(
            "save_timm: got a model with LoRA factors, which timm does not have. Merge them first: "
            "model = jaxvision.merge_lora(model)."
        )
    tensors = {}
    for name, leaf in weights(model).items():
        array = np.asarray(jax.device_get(leaf.get_value()))
        # safetensors writes the memory of an array as it is, so a transposed view would be written untransposed.
        # np.ascontiguousarray would make a scalar an array with one axis.
        tensors[timm_name(name)] = np.asarray(array.transpose(timm_axes(name, array.ndim)), order="C")
        if name.endswith(".mean"):
            tensors[name.removesuffix("mean") + COUNTER] = np.zeros((), np.int64)
    metadata = {"format": "pt", **(metadata or {})}
    patches = model.patch_weights()
    if patches.positions:
        metadata[GRID] = "x".join(map(str, patches.grid))
    try:
        files.write_safetensors(tensors, path, metadata)
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot write {path}: {e}. An earlier file of that name is unchanged.") from e
