"""A model that compiles in a second and has all kinds of state that a train step updates: BatchNorm and dropout."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvision.models.layers.norm import BatchNorm
from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import state_shardings
from jaxvision.train.loss import make_loss
from jaxvision.train.state import abstract_state, create_state, initialize
from jaxvision.train.step import make_train_step


def waves(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """An initializer that compiles faster than random numbers. Most tests spend their time compiling."""
    del key
    return (0.5 * jnp.sin(1 + jnp.arange(np.prod(shape), dtype=jnp.float32))).reshape(shape).astype(dtype)


class Tiny(nnx.Module):
    """Convolution, norm, dropout, classifier: [b, h, w, 3] -> [b, classes]."""

    def __init__(
        self,
        *,
        classes: int = 4,
        norm: bool = True,
        dropout: float = 0.0,
        features: int = 8,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        # A bias before a norm has no effect, and its gradient is rounding error, which Adam would scale to full size.
        self.conv = nnx.Conv(3, features, (3, 3), use_bias=not norm, dtype=dtype, kernel_init=waves, rngs=rngs)
        self.bn = BatchNorm(features, dtype=dtype, rngs=rngs) if norm else None
        self.drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs)
        self.fc = nnx.Linear(features, classes, dtype=dtype, kernel_init=waves, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        x = jax.nn.relu(x if self.bn is None else self.bn(x))
        return self.fc(self.drop(x.mean((1, 2))))


def build(**options: Any) -> Any:
    """Returns a function that builds a `Tiny` with these options."""
    return lambda: Tiny(**options, rngs=nnx.Rngs(0))


def filled(build: Any) -> nnx.Module:
    """Returns the model of `build` with waves at He's scale instead of random numbers."""

    def fill(path: Any, x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if x.ndim < 2:
            ones = jax.tree_util.keystr(path).count("scale") + jax.tree_util.keystr(path).count("var")
            return np.full(x.shape, float(ones > 0), x.dtype)
        return (
            2 / np.sqrt(np.prod(x.shape[:-1])) * np.sin(1 + np.arange(np.prod(x.shape)).reshape(x.shape) ** 1.1)
        ).astype(x.dtype)

    graph, state = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def batch(b: int = 16, *, seed: int = 0, classes: int = 4, masked: int = 0) -> dict[str, np.ndarray]:
    """Returns a batch like the pipeline's; the last `masked` rows are padding."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (b, 6, 6, 3), dtype=np.uint8),
        "label": rng.integers(0, classes, b).astype(np.int32),
        "index": np.arange(b, dtype=np.int32),
        "mask": np.arange(b) < b - masked,
    }


def prepare(batch: Any, step: Any = None) -> Any:
    """Returns images in [-1, 1] and labels."""
    return batch["image"].astype(jnp.float32) / 127.5 - 1, batch["label"]


class Run:
    """A training state on its mesh, and its step."""

    def __init__(self, model: Any, tx: Any, *, devices: int = 1, table: Any = None, state: Any = None, **options: Any):
        create = functools.partial(create_state, tx=tx, **options.pop("create", {}))
        self.mesh = make_mesh(devices=jax.devices()[:devices])
        self.graph, self.abstract = abstract_state(create, model)
        self.shardings = state_shardings(self.abstract, self.mesh, **({} if table is None else {"table": table}))
        self.state = initialize(create, model, self.shardings) if state is None else state
        self.step = make_train_step(
            self.graph,
            mesh=self.mesh,
            shardings=self.shardings,
            **{"loss": make_loss(), "prepare": prepare, "learning_rate": 0.1, **options},
        )

    def train(self, steps: int, *, start: int = 0, b: int = 16) -> list[dict[str, float]]:
        """Takes steps, each on a different batch, and returns their metrics."""
        metrics = []
        for i in range(start, start + steps):
            self.state, m = self.step(self.state, batch(b, seed=i))
            metrics.append(jax.device_get(m))
        return metrics

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns every array of the state by name, random keys as their data."""
        return arrays(self.state)


def arrays(state: Any) -> dict[str, np.ndarray]:
    """Returns every array of a state by name on the host, random keys as their data."""
    result = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        result[jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")] = np.array(x)
    return result
