"""Weight files for tests: written with made-up values, loaded, and compared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import fill
from safetensors.numpy import save_file

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights import timm

TINY = ["test_resnet", "test_vit", "test_efficientnet"]


@functools.cache
def _parts(architecture: str, **options: Any) -> Any:
    return nnx.split(registry.build_abstract(architecture, **options))


def abstract(architecture: str, **options: Any) -> Any:
    """Returns an abstract model."""
    return nnx.merge(*_parts(architecture, **options), copy=True)  # or all would share the cached Variables


def build(architecture: str, seed: int = 1, **options: Any) -> Any:
    """Returns a model with made-up weights, faster than initializing it."""
    model = abstract(architecture, **options)
    for name, leaf in timm.weights(model).items():
        tensor = fill.tensor(timm.timm_name(name), leaf.shape, seed=seed)
        leaf.set_value(jnp.asarray(tensor, leaf.get_raw_value().dtype))
    return model


def logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Returns the logits of a model, compiled."""
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, jnp.asarray(images)))


def arrays(model: Any) -> dict[str, np.ndarray]:
    """Returns the weights of a model by dotted name."""
    return {name: np.asarray(leaf.get_value()) for name, leaf in timm.weights(model).items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], *, but: tuple[str, ...] = ()) -> None:
    """Asserts that weights are equal, except those whose names start with `but`."""
    assert a.keys() == b.keys()
    for name in a:
        if not name.startswith(but):
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def as_timms(name: str, value: np.ndarray) -> np.ndarray:
    """Returns a leaf's value in timm's layout: a kernel [*space, in, out] as [out, in, *space]."""
    return np.moveaxis(value, (-1, -2), (0, 1)) if name.endswith("kernel") else value


def write(
    path: Path, architecture: str = "test_resnet", change: Callable[[dict], None] | None = None, **options: Any
) -> Path:
    """Writes a file with the names and shapes of an architecture and made-up values; `change` may edit the tensors."""
    tensors = {}
    for name, leaf in timm.weights(abstract(architecture, **options)).items():
        key = timm.timm_name(name)
        tensors[key] = fill.tensor(key, timm.timm_shape(name, leaf.shape))
    if change is not None:
        change(tensors)
    save_file(tensors, path)
    return path


def load_error(model: Any, path: Path, **options: Any) -> str:
    """Returns the message of the error that loading raises, after checking that the model is unchanged."""
    before = arrays(model)
    with pytest.raises(UserError) as error:
        timm.load_timm(model, path, **options)
    assert_same(before, arrays(model))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700, len(message)
    return message


def torch_state(architecture: str = "test_resnet", seed: int = 0) -> dict:
    """Returns timm's state_dict of an architecture, with made-up values."""
    import torch

    state = {}
    for name, leaf in timm.weights(abstract(architecture)).items():
        key = timm.timm_name(name)
        state[key] = torch.from_numpy(fill.tensor(key, timm.timm_shape(name, leaf.shape), seed=seed).copy())
        if name.endswith(".mean"):
            state[name.removesuffix("mean") + "num_batches_tracked"] = torch.tensor(7)
    return state


def assert_loads(path: Path, seed: int = 0, architecture: str = "test_resnet") -> None:
    """Asserts that a file contains the values of `torch_state` with this seed."""
    for name, value in arrays(timm.load_timm(abstract(architecture), path)).items():
        expected = fill.tensor(timm.timm_name(name), timm.timm_shape(name, value.shape), seed=seed)
        np.testing.assert_array_equal(as_timms(name, value), expected, err_msg=name)
