"""Whether a checkpoint holds the arrays of a given state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from jaxvision import tree
from jaxvision.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


def leaf_shapes(state: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf by its dotted name. Random keys count as the integers that store them."""

    def shape(x: Any) -> tuple[int, ...]:
        if hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype)).shape
        return tuple(x.shape)

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {tree.join(path).removesuffix(".value"): shape(x) for path, x in leaves}


def check_shapes(saved: Shapes, wanted: Shapes, folder: epath.Path, *, subset: bool = False) -> None:
    """Checks that a checkpoint holds the wanted leaves. It may hold more parts, such as the optimizer.

    Args:
      saved: shapes in the checkpoint, from `leaf_shapes`.
      wanted: shapes of the state to restore.
      folder: the checkpoint, for the message.
      subset: accept additional leaves within a part.

    Raises:
      UserError: leaves are missing, of other shapes, or additional within a part.
    """
    parts = {name.split(".")[0] for name in wanted}
    missing = [name for name in wanted if name not in saved]
    unexpected = [name for name in saved if name not in wanted and name.split(".")[0] in parts and not subset]
    differ = [
        f"{name} {saved[name]} -> {wanted[name]}" for name in wanted if saved.get(name, wanted[name]) != wanted[name]
    ]
    found = {"missing in it": missing, "only in it": unexpected, "other shapes": differ}
    if any(found.values()):
        lists = "; ".join(
            f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for what, names in found.items()
            if names
        )
        raise UserError(
            f"checkpoint {folder}: got another model or optimizer than the config's ({lists}). "
            f"Set the config back, or choose another --workdir."
        )
