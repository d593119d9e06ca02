"""Models for tests: with the same weights as timm's, or with any, made without compiling an initialiser for each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from reference import import_timm

from jaxvision import tree
from jaxvision.models import registry
from jaxvision.weights.timm import timm_name

OURS = {
    "img_size": "image_size",
    "in_chans": "in_channels",
    "init_values": "layer_scale",
    "dynamic_img_size": "dynamic_image_size",
}


def pair(name: str, *, seed: int = 0, **timm_options: Any) -> tuple[Any, Any]:
    """Returns timm's model with random weights, none of them 0 or 1, and ours with the same ones."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = randomised(import_timm().create_model(name, **timm_options).eval(), seed=seed)
    ours = registry.build_abstract(name, **{OURS.get(key, key): value for key, value in timm_options.items()})
    return theirs, fill(ours, theirs.state_dict())


def randomised(theirs: Any, *, seed: int = 0) -> Any:
    """Returns timm's model with noise on all its weights, so that none of them is 0 or 1 any more."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in theirs.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.1 * noise.abs() if key.endswith("running_var") else 0.05 * noise)
    return theirs


def fill(model: Any, state_dict: Any) -> Any:
    """Gives the leaves of `model` the values of timm's tensors, and returns it."""
    for path, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Param | nnx.BatchStat):
            name = tree.join(path)
            value = state_dict[timm_name(name)].numpy()
            if name.endswith("kernel"):
                value = np.moveaxis(value, (0, 1), (-1, -2))
            assert value.shape == leaf.shape, name
            leaf.set_value(jnp.asarray(value))
    return model


def random_model(name: str, *, seed: int = 0, **options: Any) -> Any:
    """Returns our model with weights from numpy, none of them 0 or 1; the same ones for the same seed and shapes."""
    rng = np.random.default_rng(seed)
    model = registry.build_abstract(name, **options)
    for path, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Param | nnx.BatchStat):
            fan_in = max(leaf.size // leaf.shape[-1], 1) if path[-1] == "kernel" else 25
            value = rng.normal(scale=fan_in**-0.5, size=leaf.shape)
            value = 1 + abs(value) if path[-1] in ("scale", "var") else value
            leaf.set_value(jnp.asarray(value, leaf.dtype))
        elif isinstance(leaf, nnx.RngKey):
            leaf.set_value(jax.random.key(int(rng.integers(2**31))))
        elif isinstance(leaf, nnx.RngCount):
            leaf.set_value(jnp.uint32(0))
    return model


def images(*shape: int, seed: int = 0) -> tuple[Any, jax.Array]:
    """Returns normalised images [b, h, w, c], as timm's tensor [b, c, h, w] and as our array."""
    import torch

    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return torch.tensor(x.transpose(0, 3, 1, 2)), jnp.asarray(x)


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Asserts that two arrays differ by no more than `tolerance` of the largest number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def assert_gradients_close(ours: nnx.State, theirs: Any, tolerance: float) -> None:
    """Asserts that gradients are those of timm's model after its backward pass.

    `tolerance` is a share of the largest gradient of all, for some are zero but for rounding (a bias before a norm).
    """
    wanted = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for name, got in zip(tree.names(ours), jax.tree.leaves(ours), strict=True):
        got = np.moveaxis(np.asarray(got), (-1, -2), (0, 1)) if name.endswith("kernel") else np.asarray(got)
        error = np.abs(got - wanted.pop(timm_name(name))).max()
        assert error <= tolerance * largest, (name, error / largest)
    assert not wanted
